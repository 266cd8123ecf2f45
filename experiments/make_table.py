"""Writes one of the paper's experiments on ACDC as a table of scans.

    python -m experiments.make_table --acdc=/data/ACDC/training --scenario=domain_expansion \\
        --out=scans.csv

`experiments.train --config=configs/sequence.py:FIELD,STRATEGY,paper` learns from it what the
scenario's own config does, to the bit, with the constants of the scenario's strategy.
"""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags

from experiments.launch.cli import launch
from nfcl_jax.config import split_words
from nfcl_jax.data.acdc import PHASES, find_patients, read_info, read_phase
from nfcl_jax.data.table import COLUMNS
from nfcl_jax.data.volumes import read_volume
from nfcl_jax.scan import equidistant_frames
from nfcl_jax.storage import write_file

SCENARIOS = ("domain_expansion", "signal_expansion")

_ROOT = flags.DEFINE_string("acdc", None, "the folder of patientNNN folders")
_SCENARIO = flags.DEFINE_enum("scenario", None, SCENARIOS, "which experiment")
_PATIENTS = flags.DEFINE_string("patients", "", "comma-separated; empty is all")
_OUT = flags.DEFINE_string("out", None, "the table")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    out, text = Path(_OUT.value), io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for folder in find_patients(_ROOT.value, split_words(_PATIENTS.value)):
        rows = frames_of(folder) if _SCENARIO.value == SCENARIOS[0] else phases_of(folder)
        for row in rows:
            files = {k: os.path.relpath(row[k], out.parent) for k in ("image", "mask") if k in row}
            writer.writerow(row | files)
    write_file(out, text.getvalue())
    if _SCENARIO.value == SCENARIOS[0]:
        print(f"{out}: --config.data.time_range=0,3 makes the times those of the paper.")


def frames_of(folder: Path) -> Iterator[dict[str, object]]:
    """Four frames of a patient's cine in turn, at the times 0 to 3."""
    cine = folder / f"{folder.name}_4d.nii.gz"
    count = read_volume(cine, dimensions=4).data.shape[3]
    for place, number in enumerate(equidistant_frames(count, 4)):
        task = {"patient": f"{folder.name}/cine", "task": place + 1, "time": place}
        yield task | {"image": f"{cine}#{number}"}


def phases_of(folder: Path) -> Iterator[dict[str, object]]:
    """The end-diastolic and the end-systolic frame, a field for each: the image, in the range of
    the patient's cine, where there is one, then its mask."""
    info = read_info(folder)
    for phase in PHASES:
        own, scan = {"patient": f"{folder.name}/{phase}"}, read_phase(folder, phase)
        name = folder / f"{folder.name}_frame{int(info[phase]):02d}"
        image = {"task": 1, "image": f"{name}.nii.gz"}
        if cine := scan.cine_range():
            low, high = (scan.intensity_range[0], cine[0]), (scan.intensity_range[1], cine[1])
            image["range"] = f"{min(low)!r}:{max(high)!r}"
        yield own | image
        yield own | {"task": 2, "mask": f"{name}_gt.nii.gz"}


if __name__ == "__main__":
    launch(main, required=["acdc", "scenario", "out"])
