"""An image, then its segmentation mask: signal_expansion.py:FIELD,STRATEGY."""

from configs.base import make_config


def get_config(argument: str = "siren,distillation"):
    # Cross-entropy on the mask outweighs Huber's loss on the image, hence the larger weight.
    return make_config("signal_expansion", argument, distillation_weight=10.0)
