"""An image, then its segmentation mask: signal_expansion.py:FIELD,STRATEGY."""

from configs import base


def get_config(argument: str = "siren,distillation"):
    return base.get_config("signal_expansion", argument)
