"""An image, then its segmentation mask: signal_expansion.py:FIELD,STRATEGY."""

from configs.base import make_config


def get_config(argument: str = "siren,distillation"):
    return make_config("signal_expansion", argument)
