"""The report of all the runs below a folder, from their files alone."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nfcl_jax.checkpoints import CheckpointError
from nfcl_jax.reporting import figures, page, tables
from nfcl_jax.reporting.cautions import cautions
from nfcl_jax.reporting.claims import judge
from nfcl_jax.reporting.figures import Panel
from nfcl_jax.reporting.records import write_file
from nfcl_jax.reporting.results import (
    BASELINE,
    DISTILLATION,
    FIELD_TITLES,
    FinishedRun,
    ReportError,
    Scores,
    finished_runs,
    load_results,
    of_first_seed,
    per_patient,
    scores_of_scan,
    weight_of,
)
from nfcl_jax.reporting.shown import can_reconstruct, load_shown, reconstruct
from nfcl_jax.reporting.weights import weight_table
from nfcl_jax.runs import open_run
from nfcl_jax.scenarios import SCENARIOS, Scan

FIGURES = ("first_against_last", "image_and_mask", "weights", "reconstructions_*", "task_matrix")


def write_report(
    workdir: Path, default_weights: Mapping[str, float], patient: str | None = None
) -> list[dict[str, Any]]:
    """Writes results.csv, tables.csv, tables.md, claims.json, figures/ and report.html.

    Args:
      workdir: has the runs' folders in it or in `cells`; unfinished ones are named in the report.
      default_weights: of distillation in each scenario. Of runs with several weights those are the
        ones that the claims and figures of "distillation" are about.
      patient: whose reconstructions the figures show; the first that is shown if None.

    Returns:
      The claims, as in claims.json.

    Raises:
      ReportError: if there is no finished run, if two are of the same, or if `patient` is not among
        those shown.
    """
    folders = sorted(path.parent for path in workdir.glob("*/config.json"))
    folders += sorted(path.parent for path in workdir.glob("cells/*/config.json"))
    runs = finished_runs(folders, default_weights)
    if not runs:
        raise ReportError(f"{workdir}: no finished run here or in {workdir / 'cells'}.")
    unfinished = sorted({folder.name for folder in folders} - {run.path.name for run in runs})
    scans = load_shown(workdir)
    if patient is None and scans:
        patient = scans[0].patient
    elif patient is not None and patient not in {scan.patient for scan in scans}:
        known = ", ".join(sorted({scan.patient for scan in scans})) or "none"
        raise ReportError(
            f"no scans of {patient} are kept in {workdir / 'shown'}; there are {known}."
        )

    results = load_results(runs)
    patients = per_patient(results)
    scores = Scores(patients)
    claims = judge(scores)
    score_table = tables.score_table(patients)
    paired = tables.paired_table(patients)
    continual = tables.continual_table(patients)

    write_file(workdir / "results.csv", results.to_csv(index=False))
    weights = weight_table(scores, _weights(runs))
    together = {
        "scores": score_table,
        "paired": paired,
        "continual": continual,
        "weights": weights,
    }
    labelled = [frame.assign(table=name) for name, frame in together.items() if len(frame)]
    long = pd.concat(labelled, ignore_index=True)
    long.insert(0, "table", long.pop("table"))
    whole = [c for c in ("trained_task", "evaluated_task", "scored", "failed") if c in long]
    long[whole] = long[whole].astype("Int64")  # the tables that lack them made them floats
    write_file(workdir / "tables.csv", long.to_csv(index=False))
    write_file(workdir / "claims.json", json.dumps(claims, indent=2))
    readable = tables.readable_tables(score_table, paired, continual, weights)
    notes = cautions(runs, results, unfinished)
    write_file(workdir / "tables.md", _markdown(readable, claims, notes))
    drawn = _figures(runs, results, scores, [s for s in scans if s.patient == patient])
    pictures = _write_figures(workdir / "figures", drawn)
    html = page.render_page(
        answer=page.answer(scores, claims),
        num_patients=results["patient"].nunique(),
        num_runs=len(runs),
        settings_line=_settings_line(runs),
        cautions=notes,
        claims=claims,
        number=_number,
        figures=pictures,
        viewer=page.make_viewer(runs, scans, results) if scans else None,
        tables=readable,
        decisions=page.DECISIONS,
        settings=page.settings_table(runs),
        field_titles=FIELD_TITLES,
    )
    write_file(workdir / "report.html", html)
    return claims


def _settings_line(runs: Sequence[FinishedRun]) -> str:
    """Such as "num steps 500; batch size 4096"."""
    parts = []
    for name in ("num_steps", "batch_size"):
        values = dict.fromkeys(str(run.config[name]) for run in runs)
        parts.append(f"{name.replace('_', ' ')} {', '.join(values)}")
    return "; ".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


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
    strategies = {(scenario, strategy) for scenario, _, strategy in scores.present}
    paper = {s: (s, BASELINE) in strategies for s in SCENARIOS}
    weights = _weights(runs)
    if paper["domain_expansion"]:
        yield (
            "first_against_last",
            "Domain expansion, after the last frame was learned: the first frame against the last. "
            "On the line nothing is forgotten.",
            figures.first_against_last(scores),
        )
    if paper["signal_expansion"]:
        yield (
            "image_and_mask",
            "Signal expansion, after the mask was learned: what is left of the image, and how good "
            "the mask is.",
            figures.image_and_mask(scores),
        )
    if weights:
        yield (
            "weights",
            "Stability against plasticity over the weight of distillation; open: fine-tuned.",
            figures.weight_sweep(scores, weights),
        )
    for scan in scans[:2]:  # the cine, and ED of ED and ES
        rows = reconstruction_rows(runs, scan, results)
        if rows:
            of = "the first frame after the last was learned"
            if scan.image != "cine":
                of = f"the {scan.image} image and mask after the mask was learned"
            yield (
                f"reconstructions_{scan.patient}_{scan.image}",
                f"{scan.patient}: {of}, in the middle slice.",
                figures.panel_grid(*rows),
            )
    if paper["domain_expansion"]:
        yield (
            "task_matrix",
            "Domain expansion: mean PSNR of every frame after every frame.",
            figures.task_matrix(scores),
        )


def _weights(runs: Sequence[FinishedRun]) -> dict[tuple[str, str], float]:
    """The weight of each scenario's strategies, if there are several."""
    weights = {(r.config["scenario"], r.strategy): weight_of(r.config) for r in runs}
    found = {key: weight for key, weight in weights.items() if weight is not None}
    scenarios = [scenario for scenario, _ in found]
    return {key: weight for key, weight in found.items() if scenarios.count(key[0]) > 1}


def reconstruction_rows(runs: Sequence[FinishedRun], scan: Scan, results: pd.DataFrame):
    """Columns and rows for `figures.panel_grid`: the scan's first frame or image (and mask), and
    what each field has of it at the end, without and with distillation; None without runs."""
    chosen = {
        (run.strategy, run.field): run
        for run in of_first_seed(runs, scan.scenario)
        if run.strategy in (BASELINE, DISTILLATION) and can_reconstruct(run, scan)
    }
    if not chosen:
        return None
    fields = [f for f in FIELD_TITLES if any(f == field for _, field in chosen)]
    middle = scan.intensities.shape[3] // 2
    truth = scan.intensities[0, ..., middle]
    last = len(SCENARIOS[scan.scenario]())
    rows = []
    for strategy, title in ((BASELINE, "fine-tuned"), (DISTILLATION, "distilled")):
        images, errors, masks = [Panel("image", truth)], [None], [None]
        if scan.labels is not None:
            masks = [Panel("mask", scan.labels[0, ..., middle], "", truth)]
        for field in fields:
            panels = [None, None, None]
            run = chosen.get((strategy, field))
            try:
                outputs = run and reconstruct(open_run(run.path), scan, last, 1, [middle])
            except CheckpointError:  # which the viewer's notes name
                outputs = None
            if outputs is not None:
                outputs = outputs[0, :, :, 0]
                of_scan = (results, run, scan.patient, scan.image, last)
                image = outputs[..., 0]
                psnr = scores_of_scan(*of_scan, 1)["psnr"]
                panels[0] = Panel("image", image, f"{psnr:.1f} dB")
                panels[1] = Panel("error", np.clip(image, 0, 1) - truth)
                if scan.labels is not None:
                    dsc = scores_of_scan(*of_scan, last)["dsc"]
                    classes = np.argmax(outputs[..., 1:], axis=-1)
                    panels[2] = Panel("mask", classes, f"DSC {dsc:.2f}", truth)
            for row, panel in zip((images, errors, masks), panels, strict=True):
                row.append(panel)
        if any(images[1:]):
            rows += [(title, images), ("error", errors)]
            rows += [("mask", masks)] if any(masks) else []
    return ["scan", *(FIELD_TITLES[field] for field in fields)], rows


def _write_figures(folder: Path, drawn) -> list[dict[str, str]]:
    folder.mkdir(exist_ok=True)
    for kind in ("png", "svg"):  # of an earlier report
        for name in FIGURES:
            for path in folder.glob(f"{name}.{kind}"):
                path.unlink()
    pictures = []
    for name, caption, figure in drawn:
        files = {kind: figures.figure_bytes(figure, kind) for kind in ("png", "svg")}
        for kind, contents in files.items():
            write_file(folder / f"{name}.{kind}", contents)
        # Pictures of scans are smaller as PNG.
        kind = "png" if name.startswith("reconstructions") else "svg"
        pictures.append({"caption": caption, "url": page.data_url(files[kind], kind)})
    return pictures
