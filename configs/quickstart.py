"""The paper's experiments cut down to minutes on a laptop: smaller fields, fewer points a step."""

from configs import paper


def get_config():
    config = paper.get_config()
    fewer = [f"{field}:batch_size=1024" for field in ("pe_relu", "siren", "finer")]
    config.overrides = ",".join(["*:field.width=128", *fewer])
    return config
