"""Writes the built-in phantom in ACDC's folder layout.

python -m experiments.make_phantom --out=DIR --num_patients=4
"""

from absl import app, flags

from experiments.launch.cli import launch
from nfcl_jax.data.phantom import write_phantom

_OUT = flags.DEFINE_string("out", None, "folder that gets patient001, patient002, ...")
_NUM_PATIENTS = flags.DEFINE_integer("num_patients", 4, "how many", lower_bound=1, upper_bound=9999)
_SEED = flags.DEFINE_integer("seed", 0, "of anatomy, texture and noise", lower_bound=0)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    root = write_phantom(_OUT.value, _NUM_PATIENTS.value, _SEED.value)
    print(f"{_NUM_PATIENTS.value} phantom patients in {root}")


if __name__ == "__main__":
    launch(main, required=["out"])
