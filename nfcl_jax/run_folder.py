"""What a run's folder holds beside its checkpoints, and whether it is the run that is asked for."""

import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nfcl_jax.checkpoints import checkpoint_path, num_learned
from nfcl_jax.checks import split_words
from nfcl_jax.config import (
    INDIFFERENT,
    in_todays_terms,
    read_config,
    stored_config,
)
from nfcl_jax.data.compared import differing_rows
from nfcl_jax.data.sequence import time_range_of
from nfcl_jax.errors import AnotherRunError, RunError
from nfcl_jax.fields import Field, Params, create_field, init_params
from nfcl_jax.params import num_parameters
from nfcl_jax.points import num_axes, num_space_axes
from nfcl_jax.scan import Scan, is_name
from nfcl_jax.scenarios import SEQUENCE, num_channels, tasks_of
from nfcl_jax.storage import Label, read_json, write_file

PATIENTS = "patients"  # where the runs of a table have their folders
LATER = ("intensity_range", "sha256")  # of a scan, which early runs do not have


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
        abstract = _abstract_of(config, channels, scan.shape)
        records.append(
            {
                "patient": scan.patient,
                "image": scan.image,
                "shape": scan.shape,
                "frame_numbers": scan.frame_numbers,
                "spacing": scan.spacing,
                "affine": scan.affine.tolist(),
                "intensity_range": scan.intensity_range,
                "sha256": scan.sha256,
                "parameters": num_parameters(abstract),
            }
            | ({"times": scan.times} if scan.times else {})
            | dict(scan.source)
        )
    return records + [{"patient": name, "left_out": faults} for name, faults in left_out.items()]


def _abstract_of(config: Mapping[str, Any], channels: int, shape: Sequence[int]) -> Params:
    space = num_space_axes(shape)
    field = create_field(config["field"], channels, math.prod(shape), space)
    return _abstract(field, num_axes(shape))


@functools.lru_cache
def _abstract(field: Field, axes: int) -> Params:
    init = functools.partial(init_params, field, axes=axes)
    return jax.eval_shape(init, jax.random.key(0))


def params_like(config: Mapping[str, Any], scan_record: Mapping[str, Any], task: int) -> Params:
    """Shapes and types of the parameters that a task leaves of a scan."""
    return _abstract_of(config, num_channels(tasks_of(config)[:task]), scan_record["shape"])


def read_records(path: Path) -> list[dict[str, Any]]:
    """The patients.json of a run: a record of each scan, or of a patient who was left out.

    Raises:
      RunError: if it is none.
    """
    return stored_records(read_json(path), path)


def stored_records(records: Any, path: Path) -> list[dict[str, Any]]:
    """The same of what was read from `path`."""
    if not isinstance(records, list) or not all(map(_is_record, records)):
        raise RunError(f"{path}: not the scans of a run; a copy of the file would be right.")
    for name in (record[k] for record in records for k in ("patient", "image") if k in record):
        if not is_name(name):
            raise RunError(f"{path}: {name!r} is no name of a patient.")
    return records


def _is_record(record: Any) -> bool:
    """Whether this is what patients.json has of a scan, or of a patient who was left out."""
    if not isinstance(record, dict) or not isinstance(record.get("patient"), str):
        return False
    if "left_out" in record:
        reasons = record["left_out"]
        return isinstance(reasons, list) and all(isinstance(line, str) for line in reasons)
    shape, frames = record.get("shape"), record.get("frame_numbers")
    return (
        isinstance(record.get("image"), str)
        and _are_numbers([shape, frames, [record.get("parameters")]], int)
        and min(shape + frames + [record["parameters"]]) >= 1
        and len(shape) >= 3
        and shape[:-3] == ([len(frames)] if len(frames) > 1 or record.get("times") else [])
        and frames == sorted(set(frames))
        and _are_numbers([record.get("spacing")], int, float)
        and len(record["spacing"]) == 3
        and min(record["spacing"]) > 0
        and isinstance(record.get("affine"), list)
        and _are_numbers(record["affine"], int, float)
        and list(map(len, record["affine"])) == [4] * 4
        and bool(np.linalg.det(np.array(record["affine"], float)))
    )


def _are_numbers(rows: list[Any], *kinds: type) -> bool:
    """Whether these are lists, none of them empty, of finite numbers."""
    return all(
        isinstance(row, list)
        and bool(row)
        and all(type(number) in kinds and abs(number) < 1e300 for number in row)
        for row in rows
    )


def write_description(workdir: Path, config: Mapping[str, Any], scan_records: list[dict]) -> None:
    """Writes config.json and patients.json."""
    write_file(workdir / "config.json", json.dumps(config, indent=2))
    write_file(workdir / "patients.json", json.dumps(scan_records, indent=2))


def refuse_another_run(
    config: Mapping[str, Any], scan_records: list[dict] | None, workdir: Path
) -> None:
    """Raises AnotherRunError, naming what differs, if `workdir` holds a run of something else, or
    RunError if its files are no run's. Scans that are not read yet are None."""
    differing = []
    if config["scenario"] != SEQUENCE and (workdir / PATIENTS).is_dir():
        differing.append("scans of a table")
    if (workdir / "config.json").exists():
        moved = scan_records is None or _told_by_values(workdir / "patients.json")
        there, wanted = (
            _what_matters(own, but=["root"] if moved else [])  # moved data are the same data
            for own in (read_config(workdir / "config.json"), in_todays_terms(config))
        )
        differing += _differences(there, wanted, "config")
    if scan_records is not None and (workdir / "patients.json").exists():
        there = read_records(workdir / "patients.json")
        differing += differing_scans(there, scan_records, num_learned(workdir))
    if differing:
        raise AnotherRunError(workdir, differing)


def _told_by_values(path: Path) -> bool:
    """Whether a patients.json tells scans by their values; those of early runs do not."""
    scans = of_scans(read_records(path)) if path.exists() else []
    return bool(scans) and all("sha256" in record for record in scans)


def refuse_another_checkpoint(
    workdir: Path,
    task: int,
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    scan_records: list[dict],
) -> None:
    """Raises RunError, naming what differs, if the checkpoint of a task was left by a run of
    another config than this, or of other scans than these: one was changed since then. `about` is
    what `checkpoints.load_metadata` has of it."""
    path = checkpoint_path(workdir, task)
    configs, names = [stored_config(about.get("config"), path), config], names_of(scan_records)
    there, wanted = map(_matters_to_a_field, configs)
    scans = of_scans(stored_records(about.get("scans"), path))
    scans = [record for record in scans if _name_of(record) in names]
    differing = _differences(there, wanted, "config")
    differing += differing_scans(scans, of_scans(scan_records), task)
    if differing:
        raise RunError(
            f"{path}: left by a run with\n  "
            + "\n  ".join(differing)
            + f"\nCopies of {workdir}/config.json, patients.json and checkpoints/ as one run left "
            "them would be right."
        )


def fingerprint(config: Mapping[str, Any], scans: Iterable[Scan] = (), task: int = 0) -> str:
    """The same for configs that make the same fields of the same scans; of a table's scans, by the
    rows up to a task."""
    matters = [_matters_to_a_field(in_todays_terms(config))]
    for scan in (scan for scan in scans if scan.source):
        matters += [[row for row in scan.source["rows"] if row["task"] <= task]]
    text = json.dumps(matters if len(matters) > 1 else matters[0], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _matters_to_a_field(config: Mapping[str, Any]) -> dict[str, Any]:
    """What matters but where the scans are, and who else was fitted."""
    return _what_matters(config, but=["root", "patients"])


def _what_matters(config: Mapping[str, Any], but: Sequence[str]) -> dict[str, Any]:
    """A config without what changes no result, without the spelling of a path or the order of
    patients, and without these of its data."""
    given = config["data"]
    patients = ",".join(sorted(set(split_words(given.get("patients", "")))))
    if config["scenario"] == SEQUENCE:  # its rows are in patients.json, and tell the tasks
        kept = {k: v for k, v in given.items() if k not in ("table", "resample")}
        ends = time_range_of(given.get("time_range", "")) or ()
        kept["time_range"] = ",".join(f"{end:.15g}" for end in ends)  # 0,730 is 0.0,730.0
        return {k: v for k, v in config.items() if k not in (*INDIFFERENT, "tasks")} | {
            "data": kept
        }
    data = given | {"root": str(Path(given.get("root", "")).resolve()), "patients": patients}
    # patients.json tells who was left out.
    data = {k: v for k, v in data.items() if k not in ("skip_invalid", *but)}
    return {k: v for k, v in config.items() if k not in INDIFFERENT} | {"data": data}


def differing_scans(there: list[dict], wanted: list[dict], learned: int = 0) -> list[str]:
    """A line for each difference between the scans of two patients.json. Of patients who are left
    out the names count, not the words of their faults; of a table's scans, the rows of the tasks
    that are learned."""
    both = [
        {_name_of(r): {} if "left_out" in r else r for r in json.loads(json.dumps(records))}
        for records in (there, wanted)
    ]
    if both[0].keys() != both[1].keys():
        return [f"patients = {' instead of '.join(', '.join(own) or 'none' for own in both)}"]
    pairs = [(both[0][name], both[1][name]) for name in both[0]]
    rows = [line for pair in pairs for line in differing_rows(*pair, learned)]
    early = [key for key in LATER if not any(key in record for record in both[0].values())]
    for record in (record for own in both for record in own.values()):
        for key in early:
            record.pop(key, None)
    return _differences(*both, "patients") + rows


def _differences(there, wanted, name: str) -> list[str]:
    if isinstance(there, dict) and isinstance(wanted, dict):
        keys = sorted(there.keys() | wanted.keys())
        pairs = [(there.get(k), wanted.get(k), f"{name}.{k}") for k in keys]
        return [line for pair in pairs for line in _differences(*pair)]
    return [] if there == wanted else [f"{name} = {there!r} instead of {wanted!r}"]


def _name_of(record: Mapping[str, Any]) -> str:
    return record["patient"] if "left_out" in record else f"{record['patient']}/{record['image']}"


def of_scans(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What patients.json holds, without the patients who were left out."""
    return [record for record in records if "left_out" not in record]


def names_of(scan_records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of the scans in patients.json, such as "patient001/cine"."""
    return list(map(_name_of, of_scans(scan_records)))
