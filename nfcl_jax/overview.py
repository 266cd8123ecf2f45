"""The scans of a run and their scores at a glance."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from nfcl_jax.config import constants_of
from nfcl_jax.metrics import format_number, metrics_of
from nfcl_jax.report.scores import NOT_MEASURED
from nfcl_jax.scenarios import Task, tasks_of


def overview(
    scans: Iterable[Mapping[str, Any]], tasks: Sequence[Task], scores: pd.DataFrame, by_head: bool
) -> pd.DataFrame:
    """A row for each scan: its grid, voxels in mm, numbers of its field, and for each task the
    score right after it was learned and, after an arrow, at the end: PSNR in dB, or Dice.

    Args:
      scans: their records in patients.json.
      tasks: of the run.
      scores: as `runs.Run.scores`.
      by_head: whether these are told apart by the names of heads, as a table's are.
    """
    last = scores["trained_task"].max()
    scores = scores.set_index(["patient", "image", "metric", "evaluated_task"]).sort_index()
    rows = []
    for scan in scans:
        row = {
            "scan": f"{scan['patient']}/{scan['image']}",
            "grid": " x ".join(map(str, scan["shape"])),
            "mm": " x ".join(f"{size:.3g}" for size in scan["spacing"]),
            "parameters": scan["parameters"],
        }
        for number, task in enumerate(tasks, start=1):
            for head, _ in task.lessons:
                metric, image = metrics_of(head.kind)[0], head.name if by_head else scan["image"]
                key = scan["patient"], image, metric, number
                if key in scores.index:
                    values = scores.loc[[key]].set_index("trained_task").value
                    ends = dict.fromkeys((number, last))  # in the middle of a run they are one
                    words = (
                        format_number(metric, values[after]) if after in values else NOT_MEASURED
                        for after in ends
                    )
                    row[f"{number}: {head.name}" if by_head else task.name] = " → ".join(words)
        rows.append(row)
    return pd.DataFrame(rows)


def in_words(config: Mapping[str, Any], num_learned: int, num_scans: int) -> str:
    """A run in a line."""
    weight = constants_of(config).get("weight")
    of_weight = f" of weight {weight:g}" if isinstance(weight, int | float) else ""
    return (
        f"{config['scenario']}, {config['field']['name']}, {config['strategy']}{of_weight}, seed "
        f"{config['seed']}, {config['num_steps']} steps of {config['batch_size'] or 'all'} points; "
        f"{num_learned} of {len(tasks_of(config))} tasks, {num_scans} scans"
    )
