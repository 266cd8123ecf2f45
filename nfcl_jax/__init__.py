"""Continual learning of neural fields of biomedical images, with knowledge distillation."""

from nfcl_jax.runs import Run, open_run

__all__ = ["Run", "open_run"]
