"""Continual learning of neural fields of biomedical images, with knowledge distillation."""

from nfcl_jax.new_run import learn
from nfcl_jax.runs import Run, open_run

__all__ = ["Run", "learn", "open_run"]
