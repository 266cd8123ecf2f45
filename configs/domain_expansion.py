"""Four frames of a cine, learned one after the other: domain_expansion.py:FIELD,STRATEGY."""

from configs import base


def get_config(argument: str = "siren,distillation"):
    return base.get_config("domain_expansion", argument)
