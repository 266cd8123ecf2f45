"""The paper's experiments cut down to minutes on a laptop, on two patients of the phantom."""

from configs import paper


def get_config():
    config = paper.get_config()
    config.num_steps = 300
    config.overrides = "pe_relu:batch_size=1024,siren:batch_size=1024,finer:batch_size=1024"
    config.data.patients = "patient001,patient002"
    return config
