"""Four frames of a cine, learned one after the other: domain_expansion.py:FIELD,STRATEGY."""

from configs.base import make_config


def get_config(argument: str = "siren,distillation"):
    return make_config("domain_expansion", argument)
