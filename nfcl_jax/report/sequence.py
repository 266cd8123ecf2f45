"""The report of a table of scans, from the folders of its runs, and from its files if they are
still there."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nfcl_jax.data.sequence import Reading, read_case, time_range_of
from nfcl_jax.data.table import read_table
from nfcl_jax.errors import DataError, ReportError, first_line
from nfcl_jax.fields import field_title
from nfcl_jax.geometry import radiological
from nfcl_jax.metrics import (
    BY_LABEL,
    METRICS,
    format_number,
    metric_title,
    metrics_of,
    predicted,
)
from nfcl_jax.report import page
from nfcl_jax.report.drawn import write_figures
from nfcl_jax.report.figures import STYLE
from nfcl_jax.report.kept import Field, Kept, answer, fields_of, kept_of, means_of, notes_of
from nfcl_jax.report.panels import Panel, panel_grid
from nfcl_jax.report.results import is_of_own_scans
from nfcl_jax.run_folder import PATIENTS
from nfcl_jax.runs import open_run
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Head, Lesson
from nfcl_jax.storage import write_file
from nfcl_jax.strategies import strategy_title
from nfcl_jax.table_run import known_of

MOST_PANELS, MOST_ROWS = 12, 10  # of a figure that can be read
TURNS = mpl.colormaps["viridis"]  # of more images than there are colours to tell apart
FIGURES = ("over_tasks_*", "pictures")


def is_of_a_table(workdir: Path) -> bool:
    """Whether this is the folder of a table of scans, or of one of its runs."""
    if (workdir / "config.json").exists():
        return is_of_own_scans(workdir)
    return (workdir / PATIENTS).is_dir()


def write_sequence_report(
    workdir: Path, patient: str | None = None, scans: Mapping[str, Scan] | None = None
) -> list[Kept]:
    """Writes report.html and figures/.

    Args:
      workdir: the folder of a table's runs, or of one of them.
      patient: as the table has it, whose pictures are shown; the first if None.
      scans: by these names, where they are read already.

    Returns:
      What the page's first table has.

    Raises:
      ReportError: if nothing is learned yet, or there is no such patient.
      RunError: if a run's files are not what it leaves.
    """
    fields = fields_of(workdir)
    if not fields:
        raise ReportError(f"{workdir}: nothing is learned yet.")
    names = [field.name for field in fields]
    if patient is not None and patient not in names:
        raise ReportError(f"no field of {patient} in {workdir}; there are {', '.join(names)}.")
    ready = next((name for name in names if name in (scans or {})), names[0])
    shown = fields[names.index(patient or ready)]
    kept, notes = kept_of(fields), notes_of(workdir, fields)
    scan, faults = (scans or {}).get(shown.name), []
    if not scan:
        scan, faults = _read_again(shown)
    drawn = [*_figures_of_scores(fields), *_figure_of_pictures(shown, scan)]
    html = page.render(
        "sequence.html",
        answer=answer(fields, kept),
        settings_line=_settings_line(fields),
        notes=[*notes, *faults],
        means=pd.DataFrame([own.words() for own in means_of(kept)]) if len(fields) > 1 else None,
        kept=pd.DataFrame([own.words() for own in kept]),
        figures=write_figures(workdir / "figures", FIGURES, drawn),
        scores=_all_scores(fields),
        settings=page.settings_table([field.config for field in fields]),
    )
    write_file(workdir / "report.html", html)
    return kept


def _settings_line(fields: Sequence[Field]) -> str:
    """Such as "SIREN, distilled, 500 steps of 3456 points for each task."""
    words = []
    for config in (field.config for field in fields):
        points = config["batch_size"] or "all"
        how = f"{field_title(config['field']['name'])}, {strategy_title(config['strategy'])}"
        words.append(f"{how}, {config['num_steps']} steps of {points} points for each task.")
    return " ".join(dict.fromkeys(words))


def _all_scores(fields: Sequence[Field]) -> pd.DataFrame:
    rows: dict[tuple[str, int, str], dict[str, str]] = {}
    for field in fields:
        now = [score for score in field.scores if score.trained_task == len(field.tasks)]
        for score in sorted(now, key=lambda score: score.evaluated_task):
            number = score.evaluated_task
            place = field.name, number, field.learned(number, score.image)
            words = format_number(score.metric, score.value)
            rows.setdefault(place, {})[score.metric] = words
    found = [dict(zip(("patient", "task", "learned"), k, strict=True)) | v for k, v in rows.items()]
    frame = pd.DataFrame(found)
    known, metrics = frame.columns[:3], frame.columns[3:]
    return frame[[*known, *sorted(metrics, key=_order)]].rename(columns=metric_title).fillna("")


def _order(metric: str) -> tuple[int, int, int]:
    """What all have, then labels by their numbers."""
    if metric in METRICS:
        return 0, list(METRICS).index(metric), 0
    kind, _, label = metric.partition("_")
    return (1, int(label), list(BY_LABEL).index(kind)) if kind in BY_LABEL else (2, 0, 0)


def _read_again(field: Field) -> tuple[Scan | None, list[str]]:
    """The scan of a field by its table, and why it is not there."""
    data = field.config["data"]
    if not data["table"]:
        return None, []
    try:
        rows = [row for row in read_table(Path(data["table"])) if row.patient == field.name]
        reading = Reading(time_range_of(data["time_range"]), data["resample"])
        known = known_of(field.folder, field.record, field.config)
        rows = [row for row in rows if row.task <= len(field.tasks)]
        cases, faults = read_case(rows, reading, known) if rows else ([], {})
        there = [json.loads(json.dumps(case.scan.source["rows"])) for case in cases]
        if there == [known.record["rows"]]:
            return cases[0].scan, []
        (fault,) = faults.values() or [["the table has other files, or none."]]
        fault = fault[0]
    except (DataError, OSError) as error:
        fault = first_line(error)
    return None, [f"{field.name} is shown without its scans, which cannot be read: {fault}"]


def _figures_of_scores(fields: Sequence[Field]) -> Iterator[tuple[str, str, Figure]]:
    for kind, what in (("image", "image"), ("mask", "mask")):
        able = [f for f in fields if any(n < len(f.tasks) for n, _ in _taught(f, kind))]
        if able:
            left_out = ", ".join(field.name for field in able[MOST_PANELS:])
            yield (
                f"over_tasks_{kind}",
                f"Every {what} after each task, from that on in which it was learned."
                + f" Not shown: {left_out}." * bool(left_out),
                over_tasks(able[:MOST_PANELS], kind),
            )


def _taught(field: Field, kind: str) -> list[tuple[int, Lesson]]:
    """The lessons of a kind, with the numbers of their tasks."""
    numbered = enumerate(field.tasks, start=1)
    return [(n, own) for n, task in numbered for own in task.lessons if own.head.kind == kind]


def over_tasks(fields: Sequence[Field], kind: str) -> Figure:
    """A panel for each field: the first metric of everything of a kind over the number of tasks
    that are learned; what was not measured is left out."""
    columns = min(len(fields), 3)
    rows = -(-len(fields) // columns)
    metric = metrics_of(kind)[0]
    with mpl.rc_context(STYLE):
        size = max(3.4 * columns, 5), 2.7 * rows + 0.3
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, field in zip(grid.flat, fields, strict=False):
            taught = _taught(field, kind)
            for turn, (number, (head, frames)) in enumerate(taught, start=1):
                title = head.name if len(frames) > 1 else field.title(head, *frames)
                own = {"color": TURNS(turn / len(taught))} if len(taught) > MOST_ROWS else {}
                after = range(number, len(field.tasks) + 1)
                values = [field.after(task, number, head) for task in after]
                points = [(a, v) for a, v in zip(after, values, strict=True) if _is_number(v)]
                if points:
                    axes.plot(*zip(*points, strict=True), marker="o", markersize=4, lw=1.3,
                              label=f"{number}: {title}", **own)  # fmt: skip
            axes.set_title(field.name, fontsize=10)
            axes.set_xticks(range(1, len(field.tasks) + 1))
            axes.set_xlabel("tasks learned")
            lines, titles = axes.get_legend_handles_labels()
            few = np.linspace(0, len(lines) - 1, min(len(lines), MOST_ROWS)).round().astype(int)
            beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
            axes.legend(
                [lines[i] for i in few],
                [titles[i] for i in few],
                fontsize=7,
                **(beside if len(lines) > MOST_ROWS else {}),
            )
        for axes in grid[:, 0]:
            axes.set_ylabel(metric_title(metric))
        for axes in grid.flat[len(fields) :]:
            axes.set_visible(False)
    return figure


def _is_number(value: float | None) -> bool:
    return value is not None and not np.isnan(value)


def _figure_of_pictures(field: Field, scan: Scan | None) -> Iterator[tuple[str, str, Figure]]:
    run, (*_, depth) = open_run(field.folder), field.record["shape"]
    last, middle = len(field.tasks), depth // 2
    everything = [
        (number, head, frame)
        for number, task in enumerate(field.tasks, start=1)
        for head, frames in task.lessons
        for frame in frames
    ]
    seen: dict[tuple[int, int], np.ndarray] = {}
    place, pixel = field.record.get("placed_at", field.record), tuple(field.record["spacing"][:2])
    placed = field.record.get("placed") or "placed_at" in field.record
    flips, turned = radiological(np.array(place["affine"])) if placed else ((), False)

    def upright(values: np.ndarray) -> np.ndarray:
        flipped = np.flip(values, flips)
        return np.swapaxes(flipped, 0, 1) if turned else flipped

    def ask(task: int, frame: int) -> np.ndarray:
        """The field's outputs in the middle slice of a frame."""
        if (task, frame) not in seen:
            asked = run.field(field.record["patient"], task, field.record["image"])
            whole = (frame + 1, *asked.shape[-3:])
            index = np.arange(np.prod(whole)).reshape(whole)[frame, ..., middle]
            outputs = asked.at_voxels(index.ravel())
            seen[task, frame] = upright(outputs.reshape(*index.shape, -1))
        return seen[task, frame]

    rows = []
    for number, head, frame in everything[:MOST_ROWS]:
        lacks = scan is None or (head.name, frame) in scan.missing
        target = None if lacks else upright(scan.values[head.name][frame][:, :, middle])
        then, now = (
            predicted(Lesson(head, (frame,)), ask(task, frame)[..., head.channels])
            for task in (number, last)
        )
        behind = _behind(field, ask(last, frame))
        panels = [own if own is None else _panel(head, own, behind) for own in (target, then, now)]
        error = None
        if target is not None and head.kind == "image":
            difference = now - target
            error = Panel("error", difference.mean(axis=-1) if difference.ndim > 2 else difference)
        rows.append((f"{number}: {field.title(head, frame)}", [*panels, error]))
    columns = ["scan", "when learned", "now", "error now"]
    more = f" The first {MOST_ROWS} of {len(everything)}." * (len(everything) > MOST_ROWS)
    yield (
        "pictures",
        f"{field.name}{', in the middle slice' * (depth > 1)}.{more}",
        panel_grid(columns, rows, pixel[::-1] if turned else pixel),
    )


def _behind(field: Field, outputs: np.ndarray) -> np.ndarray:
    """An image, or nothing, to lay a mask on."""
    for task in field.tasks:
        for head, _ in task.lessons:
            if head.kind == "image":
                return np.clip(outputs[..., head.channels], 0, 1).mean(axis=-1)
    return np.zeros(outputs.shape[:-1])


def _panel(head: Head, values: np.ndarray, behind: np.ndarray) -> Panel:
    if head.kind == "image":
        return Panel("image", values)
    if 0 in head.labels:  # the background is to be class 0
        background = head.labels.index(0)
        values = np.where(values == background, 0, values + (values < background))
    else:
        values = values + 1
    return Panel("mask", values, "", behind)
