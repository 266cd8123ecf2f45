"""Draws the first frame of a patient as each of several runs of domain expansion keeps it.

    python -m experiments.plot --runs=runs/finetune,runs/distillation --patient=patient001 \\
        --root=runs/finetune/phantom --out=forgetting.png
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from configs.base import ConfigError
from experiments.commandline import launch
from nfcl_jax import evaluation, open_run
from nfcl_jax.coordinates import index_to_coords
from nfcl_jax.data.acdc import read_scans
from nfcl_jax.reporting.figures import Panel, reconstruction_panels

_RUNS = flags.DEFINE_list("runs", None, "folders of the runs, one row each")
_PATIENT = flags.DEFINE_string("patient", None, "whose first frame to draw")
_ROOT = flags.DEFINE_string("root", None, "data.root of the runs")
_OUT = flags.DEFINE_string("out", None, "the picture to write, .png or .svg")
flags.register_validator(
    "out", lambda path: path is None or path.endswith((".png", ".svg")), "must end in .png or .svg"
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    scan = read_scans(_ROOT.value, "domain_expansion", [_PATIENT.value])[0]
    truth, middle = scan.intensities[0], scan.intensities.shape[3] // 2
    rows = []
    for folder in _RUNS.value:
        run = open_run(folder)
        if run.config["scenario"] != "domain_expansion":
            raise ConfigError(f"{folder}: a run of domain_expansion is wanted.")
        panels = []
        for task in run.tasks:
            image = np.clip(first_frame(run, scan, task), 0, 1)
            score = evaluation.psnr(truth, image)
            panels.append(Panel(f"after frame {task}\n{score:.1f} dB", image[..., middle]))
        rows.append((f"{run.config['field']['name']}\n{run.config['strategy']}", panels))
    figure = reconstruction_panels(truth[..., middle], rows)
    figure.savefig(Path(_OUT.value), dpi=110)
    print(f"wrote {_OUT.value}")


def first_frame(run, scan, task: int) -> np.ndarray:
    """The first frame, (x, y, z), as the field has it after `task`."""
    shape = scan.shape[1:]
    field = run.field(scan.patient, task)
    index = np.arange(np.prod(shape))  # frames are contiguous
    if run.config["field"]["name"] == "diner":
        return field(index).reshape(shape)
    coords = index_to_coords(jnp.asarray(index), jnp.array(scan.shape))
    return field(coords).reshape(shape)


if __name__ == "__main__":
    launch(main, required=["runs", "patient", "root", "out"])
