"""Distillation at several weights, beside fine-tuning, for the choice of the defaults."""

from configs import paper


def get_config():
    config = paper.get_config()
    config.weights = "0.1,1,10,100,1000"
    return config
