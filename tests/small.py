"""Scans of noise and small fields, for tests of the training."""

import jax
import numpy as np

from nfcl_jax.batch_task import Recipe
from nfcl_jax.batching import device_mesh
from nfcl_jax.loop import learn
from nfcl_jax.padded import stable_hash
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.strategies import FINETUNE
from nfcl_jax.strategies.distillation import distillation

FRAMES = SCENARIOS["domain_expansion"].tasks(1.0)
IMAGE_AND_MASK = SCENARIOS["signal_expansion"].tasks(1.0)
SMALL = {"width": 16, "depth": 2}


def recipe(name="siren", strategy=FINETUNE, **changes):
    """Twelve steps of 64 points of a small field."""
    constants = {
        "learning_rate": 1e-3,
        "muon_rate": 0.0,
        "later_factor": 1.0,
        "mask_later_factor": 1.0,
        "warmup_steps": 0,
        "schedule": "constant",
        "keep_optimiser": False,
        "num_steps": 12,
        "batch_size": 64,
        "in_passes": False,
    }
    constants |= {"scans_per_batch": None, "seed": 0} | changes
    return Recipe(field={"name": name, **SMALL}, strategy=strategy, **constants)


def distilled(name="siren", **changes):
    return recipe(name, distillation(weight=1.0), **changes)


def apart(how):
    """DINER's recipe, with the classes of masks moved apart."""
    return how._replace(field=how.field | {"separate_classes": True})


def make_scan(patient, shape, num_frames=4, image="cine", seed=0):
    rng = np.random.default_rng([seed, stable_hash(patient)])
    return Scan(
        patient=patient,
        image=image,
        values={
            "image": rng.uniform(size=(num_frames, *shape)).astype("f4"),
            "mask": rng.integers(0, 4, (num_frames, *shape)).astype("u1"),
        },
        frame_numbers=tuple(range(1, num_frames + 1)),
        spacing=(1.0, 1.0, 10.0),
        affine=np.eye(4),
    )


def cohort(num_frames=4, image="cine"):
    shapes = [(8, 9, 2), (12, 7, 3), (7, 7, 1), (10, 11, 4), (9, 8, 2)]
    return [make_scan(f"patient{i}", s, num_frames, image) for i, s in enumerate(shapes)]


def scans_for(tasks):
    """A cohort with as many frames as the tasks need."""
    return cohort() if tasks == FRAMES[: len(tasks)] else cohort(1, "ED")


def train(scans, tasks, recipe, **rest):
    """The results of every task, on one device."""
    return list(learn(scans, tasks, recipe, device_mesh(jax.devices()[:1]), **rest))


def params_of(result):
    return {name: own.params for name, own in result.learned.items()}


def assert_same_results(a, b, patients, rtol=5e-3):
    """What `patients` got in two runs agrees; only rounding may differ between programs."""
    for x, y in zip(a, b, strict=True):
        values = [
            [s.value for s in r.scores if s.patient in patients]
            + [f.final_loss + f.final_penalty for f in r.fits if f.patient in patients]
            for r in (x, y)
        ]
        assert len(values[0]) == len(values[1]) > 0
        np.testing.assert_allclose(*values, rtol=rtol)
