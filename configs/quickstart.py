"""The paper's experiments in minutes on a laptop: smaller fields, fewer points, fewer steps."""

from configs import paper


def get_config():
    config = paper.get_config()
    config.strategies = ",".join(paper.METHOD)
    config.num_steps = 300
    fewer = [f"{field}:batch_size=512" for field in ("pe_relu", "siren", "finer")]
    config.overrides = ",".join(["*:field.width=64", *fewer])
    return config
