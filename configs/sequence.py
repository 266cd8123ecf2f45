"""A table of scans, each learned when its row says so: sequence.py:FIELD,STRATEGY. With ",paper" it
takes the paper's steps instead of the recommended ones."""

from configs import base
from nfcl_jax.recommended import recommended
from nfcl_jax.scenarios import SEQUENCE

PAPER = ",paper"


def get_config(argument: str = "siren,distillation"):
    config = base.get_config(SEQUENCE, argument.removesuffix(PAPER))
    return config if argument.endswith(PAPER) else base.as_flags(recommended(config.to_dict()))
