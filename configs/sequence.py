"""A table of scans, each learned when its row says so: sequence.py:FIELD,STRATEGY."""

from configs import base
from nfcl_jax.scenarios import SEQUENCE


def get_config(argument: str = "siren,distillation"):
    return base.get_config(SEQUENCE, argument)
