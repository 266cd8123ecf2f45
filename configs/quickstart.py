"""The paper's experiments cut down to minutes on a laptop, on the built-in phantom."""

from configs import paper


def get_config():
    config = paper.get_config()
    config.num_steps = 250
    config.batch_size = 1024
    return config
