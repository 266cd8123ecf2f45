"""What a run's folder holds beside its checkpoints, and whether it is the run that is asked for."""

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from nfcl_jax.config import INDIFFERENT, in_todays_terms, read_config, read_records, split_words
from nfcl_jax.errors import ConfigError, RunError
from nfcl_jax.fields import create_field, init_params
from nfcl_jax.metrics import metrics_of
from nfcl_jax.params import num_parameters
from nfcl_jax.records import Fit, Score
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS, Task, num_channels
from nfcl_jax.storage import Label, read_csv, write_file

log = logging.getLogger("nfcl_jax")


def tasks_of(config: Mapping[str, Any]) -> tuple[Task, ...]:
    """The tasks of a config's scenario."""
    return SCENARIOS[config["scenario"]].tasks(config["huber_delta"])


def label_of(config: Mapping[str, Any]) -> Label:
    """What tells the rows of this run from another's."""
    return Label(config["scenario"], config["field"]["name"], config["strategy"], config["seed"])


def describe_scans(
    scans: Sequence[Scan], config: Mapping[str, Any], left_out: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """What patients.json holds: of each scan, with the size of its field, and of each patient that
    is left out, with the reasons."""
    channels, records = num_channels(tasks_of(config)), []
    for scan in scans:
        field = create_field(config["field"], channels, scan.intensities.size)
        records.append(
            {
                "patient": scan.patient,
                "image": scan.image,
                "shape": scan.shape,
                "frame_numbers": scan.frame_numbers,
                "spacing": scan.spacing,
                "affine": scan.affine.tolist(),
                "intensity_range": scan.intensity_range,
                "parameters": _count_parameters(field, len(scan.shape)),
            }
        )
    return records + [{"patient": name, "left_out": faults} for name, faults in left_out.items()]


@functools.lru_cache
def _count_parameters(field, axes: int) -> int:
    init = functools.partial(init_params, field, axes=axes)
    return num_parameters(jax.eval_shape(init, jax.random.key(0)))


def write_description(workdir: Path, config: Mapping[str, Any], scan_records: list[dict]) -> None:
    """Writes config.json and patients.json."""
    write_file(workdir / "config.json", json.dumps(config, indent=2))
    write_file(workdir / "patients.json", json.dumps(scan_records, indent=2))


def refuse_another_run(config: Mapping[str, Any], scan_records: list[dict], workdir: Path) -> None:
    """Raises ConfigError, naming what differs, if `workdir` holds a run of something else, or
    RunError if its files are no run's."""
    differing = []
    for name, wanted in (("config.json", config), ("patients.json", scan_records)):
        path = workdir / name
        if path.exists():
            read = read_config if name == "config.json" else read_records
            pair = [read(path), json.loads(json.dumps(wanted))]
            if name == "config.json":
                pair = [_what_matters(in_todays_terms(config)) for config in pair]
            elif not any("intensity_range" in record for record in pair[0]):  # of early runs
                pair = [[_without_range(record) for record in records] for records in pair]
            differing += _differences(*pair, name.split(".")[0])
    if differing:
        raise ConfigError(
            f"{workdir}: holds a run with\n  "
            + "\n  ".join(differing)
            + "\nGo on with it by its own settings, or choose another --workdir."
        )


def _what_matters(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what changes no result, and without the spelling of a path or the order of
    patients."""
    given = config["data"]
    patients = ",".join(sorted(set(split_words(given.get("patients", "")))))
    data = given | {"root": str(Path(given.get("root", "")).resolve()), "patients": patients}
    data.pop("skip_invalid", None)  # patients.json tells who was left out
    return {k: v for k, v in config.items() if k not in INDIFFERENT} | {"data": data}


def _without_range(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k != "intensity_range"}


def _differences(there, wanted, name: str) -> list[str]:
    if isinstance(there, dict) and isinstance(wanted, dict):
        keys = sorted(there.keys() | wanted.keys())
        pairs = [(there.get(k), wanted.get(k), f"{name}.{k}") for k in keys]
        return [line for pair in pairs for line in _differences(*pair)]
    return [] if there == wanted else [f"{name} = {there!r} instead of {wanted!r}"]


def names_of(scan_records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of the scans in patients.json, such as "patient001/cine"."""
    return [f"{r['patient']}/{r['image']}" for r in scan_records if "left_out" not in r]


def read_rows(
    workdir: Path, config: Mapping[str, Any], scans: Iterable[str], most: int
) -> tuple[list[Score], list[Fit]]:
    """What a run's folder holds of its first `most` tasks: of each a fit of every scan, and its
    scores on every task so far.

    Args:
      workdir: the run's folder.
      config: of the run.
      scans: their names, such as "patient001/cine".
      most: tasks that are learned.

    Raises:
      RunError: if a file is missing, cannot be read, is another run's, or has other rows than
        these.
    """
    tasks, scans = SCENARIOS[config["scenario"]].tasks(1.0), list(scans)
    numbers = range(1, most + 1)
    scores, fits = _rows(workdir / "metrics.csv", Score), _rows(workdir / "fits.csv", Fit)
    scores = [row for row in scores if row.trained_task <= most]
    fits = [row for row in fits if row.task <= most]
    labels = set(_rows(workdir / "metrics.csv", Label)) - {label_of(config)}
    if labels:
        raise RunError(
            f"{workdir / 'metrics.csv'}: has rows of {', '.join(map(str, labels.pop()))}, the run "
            f"is {', '.join(map(str, label_of(config)))}; a copy of its own file would be right."
        )
    # A metric that was added to the program, or is missing in it, is in all rows or in none.
    metrics = {task.head.kind: metrics_of(task.head.kind)[:1] for task in tasks}
    for row in scores:
        if 1 <= row.evaluated_task <= len(tasks):
            metrics[tasks[row.evaluated_task - 1].head.kind].append(row.metric)
    _refuse_other_rows(
        workdir / "metrics.csv",
        [row[:-1] for row in scores],
        [
            (*name.split("/"), trained, evaluated, metric)
            for trained in numbers
            for name in scans
            for evaluated in range(1, trained + 1)
            for metric in dict.fromkeys(metrics[tasks[evaluated - 1].head.kind])
        ],
    )
    of_fits = [(*name.split("/"), number) for number in numbers for name in scans]
    _refuse_other_rows(workdir / "fits.csv", [row[:3] for row in fits], of_fits)
    return scores, fits


def _rows(path: Path, row_type: type) -> list[Any]:
    try:
        return read_csv(path, row_type)
    except FileNotFoundError as error:
        raise RunError(f"{path}: missing. {_remedy(1)}") from error
    except ValueError as error:
        raise RunError(f"{error} {_remedy(1)}") from error


def _refuse_other_rows(path: Path, found: Sequence[tuple], expected: Sequence[tuple]) -> None:
    """Raises RunError unless the rows are those that are expected, in any order. A row begins with
    the patient, the image and the task."""
    there, wanted = Counter(found), Counter(expected)
    faults = [(row, "missing") for row in (wanted - there).elements()]
    faults += [(row, "too many") for row in (there - wanted).elements()]
    if faults:
        row, what = min(faults, key=lambda fault: fault[0][2])
        raise RunError(
            f"{path}: {len(found)} rows instead of {len(expected)}; {what}: "
            f"{', '.join(map(str, row))}. {_remedy(max(row[2], 1))}"
        )


def _remedy(task: int) -> str:
    return (
        f"A copy of the file would be right. Without checkpoints/task_{task} and those after it, "
        "the run's command learns these tasks again."
    )
