"""The report of all the runs below a folder, from their files alone."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from nfcl_jax.errors import ReportError
from nfcl_jax.report import figures, page, panels, tables
from nfcl_jax.report.caveats import caveats
from nfcl_jax.report.claims import judge
from nfcl_jax.report.drawn import write_figures
from nfcl_jax.report.results import (
    FinishedRun,
    Scores,
    finished_runs,
    is_of_own_scans,
    load_results,
)
from nfcl_jax.report.scores import per_patient, score_table
from nfcl_jax.report.shown import load_shown, runs_of_scan
from nfcl_jax.report.verdicts import shown
from nfcl_jax.report.viewer import make_viewer
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.storage import write_file

FIGURES = ("*_against_last", "*first_and_last", "*task_matrix", "*over_tasks", "reconstructions_*")
MOST_IN_A_MATRIX = 6  # tasks: the numbers in more cells cannot be read


def write_report(workdir: Path, patient: str | None = None) -> list[dict[str, Any]]:
    """Writes results.csv, tables.csv, tables.md, claims.json, figures/ and report.html.

    Args:
      workdir: has the runs' folders in it or in `cells`; unfinished ones are named in the report.
      patient: whose reconstructions the figures show; the first that is shown if None.

    Returns:
      The claims, as in claims.json.

    Raises:
      ReportError: if there is no finished run, if two are of the same, if one needs a definition
        that is not loaded, or if `patient` is not among those shown.
    """
    runs, unfinished, own_scans = _runs_in(workdir)
    scans = load_shown(workdir)
    one_patient = _scans_of(patient, scans, workdir)

    results = load_results(runs)
    patients = per_patient(results)
    scores = Scores(patients)
    claims, notes = judge(scores), caveats(runs, results, unfinished)
    notes += [f"{name}: own scans, with a report of their own." for name in own_scans]
    numbers = {
        "scores": score_table(patients),
        "paired": tables.paired_table(patients),
        "continual": tables.continual_table(patients),
    }
    readable = tables.readable_tables(*numbers.values())
    write_file(workdir / "results.csv", results.to_csv(index=False))
    write_file(workdir / "tables.csv", _long(numbers).to_csv(index=False))
    write_file(workdir / "claims.json", json.dumps(claims, indent=2))
    write_file(workdir / "tables.md", _markdown(readable, claims, notes))
    drawn = _figures(runs, results, scores, one_patient)
    html = page.render(
        "page.html",
        answer=page.answer(numbers["continual"], claims),
        num_patients=results["patient"].nunique(),
        num_runs=len(runs),
        settings_line=_settings_line(runs),
        caveats=notes,
        claims=claims,
        shown=shown,
        figures=write_figures(workdir / "figures", FIGURES, drawn),
        viewer=make_viewer(runs, scans, results) if scans else None,
        tables=readable,
        settings=page.settings_table([run.config for run in runs]),
    )
    write_file(workdir / "report.html", html)
    return claims


def _runs_in(workdir: Path) -> tuple[list[FinishedRun], list[str], list[str]]:
    """The finished runs, and the names of the others: unfinished ones, and those of own scans."""
    folders = sorted(path.parent for path in workdir.glob("*/config.json"))
    folders += sorted(path.parent for path in workdir.glob("cells/*/config.json"))
    finished = [folder for folder in folders if (folder / "summary.csv").is_file()]
    own_scans = [folder for folder in finished if is_of_own_scans(folder)]
    runs = finished_runs(folders)
    if not runs and own_scans:
        raise ReportError(
            f"{workdir}: runs of own scans, each of which has a report of its own: "
            f"--workdir={own_scans[0]} would be right."
        )
    if not runs:
        raise ReportError(f"{workdir}: no finished run here or in {workdir / 'cells'}.")
    left = {folder.name for folder in folders if folder not in own_scans}
    unfinished = sorted(left - {run.path.name for run in runs})
    return runs, unfinished, [folder.name for folder in own_scans]


def _scans_of(patient: str | None, scans: Sequence[Scan], workdir: Path) -> list[Scan]:
    """The scans of that patient, or of the first."""
    if patient is not None and patient not in {scan.patient for scan in scans}:
        known = ", ".join(sorted({scan.patient for scan in scans})) or "none"
        raise ReportError(
            f"no scans of {patient} are kept in {workdir / 'shown'}; there are {known}."
        )
    return [scan for scan in scans if scan.patient == (patient or scans[0].patient)]


def _long(numbers: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """All tables as one, the first column naming the table."""
    labelled = [frame.assign(table=name) for name, frame in numbers.items() if len(frame)]
    long = pd.concat(labelled, ignore_index=True)
    long.insert(0, "table", long.pop("table"))
    whole = [c for c in ("trained_task", "evaluated_task", "scored", "failed") if c in long]
    long[whole] = long[whole].astype("Int64")  # the tables that lack them made them floats
    return long


def _settings_line(runs: Sequence[FinishedRun]) -> str:
    """Such as "500 steps per task, 4096 or all points per step"."""
    steps, points = (
        " or ".join(dict.fromkeys(str(run.config[name] or "all") for run in runs))
        for name in ("num_steps", "batch_size")
    )
    return f"{steps} steps per task, {points} points per step"


def _markdown(readable, claims, notes: Sequence[str]) -> str:
    verdicts = pd.DataFrame(
        [[c["id"], c["claim"], c["verdict"], c["patients"]] for c in claims],
        columns=["", "claim", "verdict", "patients"],
    )
    parts = ["# Results", *notes, "## Claims", tables.markdown(verdicts)]
    for table in readable:
        parts += [f"## {table['title']}", table["note"], tables.markdown(table["frame"])]
    return "\n\n".join(parts) + "\n"


def _figures(
    runs: Sequence[FinishedRun], results: pd.DataFrame, scores: Scores, scans: Sequence[Scan]
) -> Iterable[tuple[str, str, Figure]]:
    """Name, caption and figure."""
    for name in [name for name in SCENARIOS if scores.of(name)]:
        what, *_ = SCENARIOS[name].title.split(":")
        first, last = SCENARIOS[name].ends
        if first != last and first.head == last.head:
            yield (
                f"{name}_earlier_against_last",
                f"{what}, after {last.name} was learned: the mean of all earlier tasks against it.",
                figures.earlier_against_last(scores, name),
            )
            if len(SCENARIOS[name].tasks(1.0)) <= MOST_IN_A_MATRIX:
                yield (
                    f"{name}_task_matrix",
                    f"{what}: mean of every task after every task.",
                    figures.task_matrix(scores, name),
                )
            else:
                yield (
                    f"{name}_over_tasks",
                    f"{what}: {first.name} after each task.",
                    figures.over_tasks(scores, name),
                )
        else:
            yield (
                f"{name}_first_and_last",
                f"{what}, after the last task: the {first.name} beside the {last.name}.",
                figures.first_and_last(scores, name),
            )
    for scenario in SCENARIOS.values():
        first, last = scenario.ends
        for scan in [scan for scan in scans if scan.image == scenario.images[0]]:
            able = [run for run in runs_of_scan(runs, scan)[0] if run.scenario == scenario]
            if able and (drawn := panels.reconstructions(able, scan, results)):
                yield (
                    f"reconstructions_{scan.patient}_{scan.image}_{scan.num_frames}",
                    f"{scan.patient}, {scan.image}, in the middle slice: what is left of "
                    f"{'' if first.head == last.head else 'the '}{first.name} at the end.",
                    drawn,
                )
