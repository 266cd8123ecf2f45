"""Writes one of the paper's experiments on ACDC as a table of scans.

    python -m experiments.make_table --acdc=/data/ACDC/training --scenario=domain_expansion \\
        --out=scans.csv

`experiments.train --config=configs/sequence.py:FIELD,STRATEGY,paper` learns from it what the
scenario's own config does, to the bit, with the constants of the scenario's strategy. With
`--run=RUN --workdir=FOLDER`, a finished run's fields become those of the table's runs, and rows
that are added to the table go on with them.
"""

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

from configs.sequence import PAPER, get_config
from experiments.launch.cli import launch
from nfcl_jax.adopt import adopt, config_of_table
from nfcl_jax.checks import split_words
from nfcl_jax.config import ABSENT
from nfcl_jax.data.acdc import PHASES, find_patients, read_info, read_phase
from nfcl_jax.data.cohorts import refuse_faults
from nfcl_jax.data.sequence import Reading, read_cases, time_range_of
from nfcl_jax.data.table import COLUMNS
from nfcl_jax.data.volumes import read_volume
from nfcl_jax.errors import ConfigError
from nfcl_jax.runs import open_run
from nfcl_jax.scan import equidistant_frames
from nfcl_jax.storage import write_file

SCENARIOS = ("domain_expansion", "signal_expansion")

_ROOT = flags.DEFINE_string("acdc", None, "the folder of patientNNN folders")
_SCENARIO = flags.DEFINE_enum("scenario", None, SCENARIOS, "which experiment")
_PATIENTS = flags.DEFINE_string("patients", "", "comma-separated; empty is all")
_RUN = flags.DEFINE_string("run", None, "a finished run of that experiment to go on with")
_WORKDIR = flags.DEFINE_string("workdir", None, "where its fields go, with --run")
_OUT = flags.DEFINE_string("out", None, "the table")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if (_RUN.value is None) != (_WORKDIR.value is None):
        raise app.UsageError("--run and --workdir go together.")
    theirs = open_run(_RUN.value).config if _RUN.value else None  # before anything is written
    out, text = Path(_OUT.value), io.StringIO()
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}.")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for folder in find_patients(_ROOT.value, split_words(_PATIENTS.value)):
        rows = frames_of(folder) if _SCENARIO.value == SCENARIOS[0] else phases_of(folder)
        for row in rows:
            files = {k: os.path.relpath(row[k], out.parent) for k in ("image", "mask") if k in row}
            writer.writerow(row | files)
    write_file(out, text.getvalue())
    times = "0,3" if _SCENARIO.value == SCENARIOS[0] else ""
    if theirs:
        print(f"rows that are added to {out} are learned by\n{take_over(theirs, out, times)}")
    elif times:
        print(f"{out}: --config.data.time_range={times} makes the times those of the paper.")


def take_over(theirs: Mapping[str, Any], table: Path, times: str) -> str:
    """Makes a run's fields those of the table's, and says by which command they go on."""
    config = config_of_table(theirs, table, times)
    cases, faults = read_cases(table, Reading(time_range_of(times)))
    refuse_faults(faults)
    adopt(Path(_RUN.value), cases, config, Path(_WORKDIR.value))
    name, strategy = config["field"]["name"], config["strategy"]
    shipped = get_config(f"{name},{strategy}{PAPER}").to_dict()
    flags_ = [f"--config.{k}={v}" for k, v in _changed(config, shipped)]
    words = [f"--config=configs/sequence.py:{name},{strategy}{PAPER}", *flags_]
    return f"python -m experiments.train {' '.join(words)} --workdir={_WORKDIR.value}"


def _changed(config: Mapping[str, Any], shipped: Mapping[str, Any], prefix: str = ""):
    """The settings that are not as shipped, by their names."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _changed(value, shipped[key], f"{prefix}{key}.")
        elif value != shipped.get(key, ABSENT):
            yield prefix + key, value


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
