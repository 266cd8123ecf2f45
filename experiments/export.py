"""Writes what a field makes of a patient as a NIfTI file that lies over the scan.

    python -m experiments.export --run=runs/siren --patient=patient001 --task=4 --spacing=1,1,2 \\
        --times=20 --out=patient001.nii.gz
"""

from absl import app, flags

from experiments.launch.cli import launch
from nfcl_jax.errors import ConfigError
from nfcl_jax.runs import open_run

_RUN = flags.DEFINE_string("run", None, "folder of a run")
_PATIENT = flags.DEFINE_string("patient", None, "such as patient001")
_TASK = flags.DEFINE_integer("task", None, "after which the field is asked, from 1")
_OUT = flags.DEFINE_string("out", None, "file to write, .nii or .nii.gz")
_IMAGE = flags.DEFINE_string("image", None, "ED or ES, where the patient has both")
_SPACING = flags.DEFINE_list("spacing", None, "of voxels, three in mm; the scan's, if left out")
_TIMES = flags.DEFINE_integer(
    "times", None, "time points of a cine, first to last frame learned; those frames, if left out"
)
_OUTPUT = flags.DEFINE_string("output", "image", "image, mask or probabilities")
_INTERPOLATE = flags.DEFINE_bool("interpolate", False, "between the entries of DINER's table")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        spacing = _SPACING.value and [float(size) for size in _SPACING.value]
    except ValueError as error:
        raise ConfigError(
            f"--spacing={','.join(_SPACING.value)}: three numbers would be right."
        ) from error
    try:
        run = open_run(_RUN.value)
        where = _PATIENT.value, _TASK.value, _OUT.value, _IMAGE.value, _OUTPUT.value
        sampling = {"times": _TIMES.value, "interpolate": _INTERPOLATE.value}
        print(run.to_nifti(*where, spacing=spacing, **sampling))
    except (KeyError, ValueError) as error:
        raise ConfigError(error.args[0]) from error


if __name__ == "__main__":
    launch(main, required=["run", "patient", "task", "out"])
