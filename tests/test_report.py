"""The report: what its tables, figures and notes say is what is in metrics.csv."""

import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
from made_up import FIELDS, METRICS, PATIENTS, STRATEGIES, read_csv, write_grid, write_run

from nfcl_jax.errors import ReportError
from nfcl_jax.records import Fit
from nfcl_jax.report import figures
from nfcl_jax.report.report import write_report
from nfcl_jax.report.results import Scores, finished_runs, load_results
from nfcl_jax.report.scores import per_patient, score_table
from nfcl_jax.report.statistics import mean_interval
from nfcl_jax.storage import write_csv


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    workdir = write_grid(tmp_path_factory.mktemp("made_up"), seeds=(0, 1))
    write_report(workdir)
    return workdir


def recomputed(workdir):
    """By scenario, field, strategy, tasks and metric each patient's mean over images and seeds."""
    values = defaultdict(lambda: defaultdict(list))
    for path in workdir.glob("cells/*/metrics.csv"):
        for row in read_csv(path):
            names = ("scenario", "field", "strategy", "trained_task", "evaluated_task", "metric")
            key = tuple(row[name] for name in names)
            values[key][row["patient"]].append(float(row["value"]))
    return {k: {p: np.mean(v) for p, v in patients.items()} for k, patients in values.items()}


def test_the_tables_can_be_recomputed_from_metrics_csv(made_up):
    expected = recomputed(made_up)
    rows = read_csv(made_up / "tables.csv")
    scores = [row for row in rows if row["table"] == "scores"]
    names = ("scenario", "field", "strategy")
    assert len(scores) == len(expected)
    for row in scores:
        tasks = (row[name] for name in ("trained_task", "evaluated_task"))
        patients = list(expected[*(row[n] for n in names), *tasks, row["metric"]].values())
        assert float(row["mean"]) == pytest.approx(np.mean(patients))
        assert float(row["std"]) == pytest.approx(np.std(patients, ddof=1))
        assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
        assert row["patients"] == row["scored"] == str(len(PATIENTS))
    assert not {"p", "effect"} & set(rows[0])  # of so many tests some would be small by chance
    paired = [row for row in rows if row["table"] == "paired"]
    assert len(paired) == 4 * (4 * 2 + 2 + 4)
    for row in paired:
        last = "4" if row["scenario"] == "domain_expansion" else "2"
        where = (last, row["evaluated_task"], row["metric"])
        kept, lost = (expected[row["scenario"], row["field"], s, *where] for s in STRATEGIES[::-1])
        assert float(row["difference"]) == pytest.approx(np.mean([kept[p] - lost[p] for p in kept]))
        ends = mean_interval(np.round([kept[p] - lost[p] for p in kept], 9))
        assert [float(row["low"]), float(row["high"])] == pytest.approx([*ends])
    continual = [row for row in rows if row["table"] == "continual" and row["metric"] == "psnr"]
    assert len(continual) == 4 * 2 * 2 * 5
    for row in continual:
        last = 4 if row["scenario"] == "domain_expansion" else 2

        def each(pairs, key=tuple(row[name] for name in names)):
            found = [expected.get((*key, str(s), str(e), "psnr")) for s, e in pairs]
            return np.array([list(own.values()) for own in found if own])  # a mask has no PSNR

        learned = each([(e, e) for e in range(1, last + 1)])
        end = each([(last, e) for e in range(1, last)])
        lost = learned[: last - 1] - end
        by_hand = {
            "stability": np.mean(end),
            "plasticity": np.mean(learned),
            "backward_transfer": -np.mean(lost),
            "forgetting": np.mean(lost),  # nothing here gets better later
            "largest_drop": np.mean(lost.max(axis=0)),
        }
        assert float(row["mean"]) == pytest.approx(by_hand[row["summary"]])


def test_results_csv_holds_every_metric(made_up):
    rows = read_csv(made_up / "results.csv")
    assert len(rows) == sum(len(read_csv(p)) for p in made_up.glob("cells/*/metrics.csv"))
    values = {tuple(row[k] for k in list(row)[:-2] if k != "weight"): row["value"] for row in rows}
    for path in made_up.glob("cells/*/metrics.csv"):
        for row in read_csv(path):
            assert float(values[tuple(list(row.values())[:-1])]) == float(row["value"])


def test_the_readable_tables_show_the_numbers_of_tables_csv(made_up):
    text = (made_up / "tables.md").read_text()
    expected = recomputed(made_up)
    ends = expected["domain_expansion", "siren", "finetune", "4", "1", "psnr"]
    row = next(line for line in text.splitlines() if line.startswith("| SIREN | finetune |"))
    assert f"| {np.mean(list(ends.values())):.1f} ± " in row
    assert f" ± {np.std(list(ends.values()), ddof=1):.1f} [" in row and "0 of 5" in row
    assert "Each interval stands alone: of 20, one is expected to miss its true mean." in text
    assert "| field | strategy | score | difference | patients |" in text


def drawn_means(axes):
    """Places of the error bars in a plot."""
    bars = [container.lines[0] for container in axes.containers]
    return {(round(float(b.get_xdata()[0]), 6), round(float(b.get_ydata()[0]), 6)) for b in bars}


def test_the_figures_show_the_numbers_of_metrics_csv(made_up):
    expected = {k: np.mean(list(v.values())) for k, v in recomputed(made_up).items()}
    scores = Scores(per_patient(load_results(finished_runs(made_up.glob("cells/*")))))
    for axes, metric in zip(
        figures.earlier_against_last(scores, "domain_expansion").axes, METRICS["image"], strict=True
    ):
        end = {
            (f, s): [expected["domain_expansion", f, s, "4", frame, metric] for frame in "1234"]
            for f in FIELDS
            for s in STRATEGIES
        }
        assert drawn_means(axes) == {
            (round(last, 6), round(np.mean(earlier), 6)) for *earlier, last in end.values()
        }
        assert axes.get_ylabel().endswith(": mean of earlier tasks")
    wanted = (("psnr", "1"), ("ssim", "1"), ("dsc", "2"))
    for axes, (metric, task) in zip(
        figures.first_and_last(scores, "signal_expansion").axes, wanted, strict=True
    ):
        assert {y for _, y in drawn_means(axes)} == {
            round(expected["signal_expansion", f, s, "2", task, metric], 6)
            for f in FIELDS
            for s in STRATEGIES
        }
    matrix = figures.task_matrix(scores, "domain_expansion")
    texts = [text.get_text() for axes in matrix.axes for text in axes.texts]
    assert sorted(texts) == sorted(
        f"{value:.1f}" for key, value in expected.items() if key[0] == "domain_expansion"
        and key[-1] == "psnr"
    )  # fmt: skip


@pytest.mark.usefixtures("without_figures")
def test_the_first_sentence_is_of_all_earlier_frames_and_names_who_gains_nothing(tmp_path):
    """Of the first frame alone distilled DINER loses nothing."""
    ends = {"pe_relu": 28, "siren": 20, "finer": 21, "diner": 37}

    def change(scenario, field, strategy, patient, trained, evaluated, metric):
        if (scenario, metric) != ("domain_expansion", "psnr"):
            return None
        if trained == evaluated:
            return 40.0 if field == "diner" else 30.0
        if strategy == "finetune":
            return float(ends[field])
        return 40.0 - 6 * (evaluated > 1) if field == "diner" else 29.0

    write_grid(tmp_path, change=change)
    write_report(tmp_path)
    assert (
        "Learning four frames in turn, FINER lost 9.0 dB of the earlier ones on average; with "
        "distillation it lost 1.0 dB. DINER lost no less with it. Learning the mask, "
    ) in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("without_figures")
def test_failed_fits_are_counted_and_the_means_are_given_without_them(tmp_path):
    folder = tmp_path / "cells/run"
    write_run(folder, "signal_expansion", "diner", "finetune")
    rows = read_csv(folder / "fits.csv")
    for row in rows:
        if (row["patient"], row["image"], row["task"]) == (PATIENTS[0], "ED", "2"):
            row["collapsed"] = "True"
    fits = [
        Fit(r["patient"], r["image"], int(r["task"]), 0.0, 0.0, r["collapsed"] == "True", False, 0)
        for r in rows
    ]
    write_csv(folder / "fits.csv", fits)
    table = score_table(per_patient(load_results(finished_runs([folder]))))
    table = table.set_index(["trained_task", "evaluated_task", "metric"])
    assert table.loc[(1, 1, "psnr"), "failed"] == 0
    row = table.loc[(2, 2, "dsc")]
    by_patient = {p: [] for p in PATIENTS}
    for r in read_csv(folder / "metrics.csv"):
        if (r["trained_task"], r["metric"]) == ("2", "dsc"):
            by_patient[r["patient"]].append((r["image"], float(r["value"])))
    all_means = [np.mean([v for _, v in images]) for images in by_patient.values()]
    without = [
        np.mean([v for i, v in images if (p, i) != (PATIENTS[0], "ED")])
        for p, images in by_patient.items()
    ]
    assert row["failed"] == 1
    assert row["mean"] == pytest.approx(np.mean(all_means))
    assert row["mean_without_failed"] == pytest.approx(np.mean(without))
    write_report(tmp_path)
    assert (
        "Collapsed or diverged: signal_expansion, diner, finetune, 0: patient001/ED"
        in (tmp_path / "report.html").read_text()
    )


def test_runs_that_differ_in_a_strategys_constants_are_told_apart(tmp_path):
    """The default keeps its name, so that the claims are about it."""
    variants = {"a": {"weight": 0.1}, "b": {}, "c": {"weight": 2.0, "points": "continuous"}}
    write_run(tmp_path / "cells/tuned", "domain_expansion", "siren", "finetune")
    for name, given in variants.items():
        folder = tmp_path / "cells" / name
        write_run(folder, "domain_expansion", "siren", "distillation", **given)
    names = [run.strategy for run in finished_runs(tmp_path.glob("cells/*"))]
    assert names == [
        "finetune",
        "distillation, weight 0.1",
        "distillation",
        "distillation, points continuous, weight 2",
    ]
    write_report(tmp_path)
    text = (tmp_path / "tables.md").read_text()
    assert "| SIREN | distillation, weight 0.1 |" in text
    svg = (tmp_path / "figures/domain_expansion_earlier_against_last.svg").read_text()
    assert "distilled, weight 0.1" in svg
    for name in "ab":
        (tmp_path / f"cells/{name}/summary.csv").unlink()
    alone = finished_runs(tmp_path.glob("cells/*"))
    assert [run.strategy for run in alone] == ["finetune", "distillation"]


@pytest.mark.usefixtures("without_figures")
def test_what_is_not_known_here_is_named(tmp_path):
    write_run(tmp_path / "cells/a", "domain_expansion", "siren", "finetune")
    path = tmp_path / "cells/a/config.json"
    config = json.loads(path.read_text())
    for kind in ("scenario", "strategy"):
        path.write_text(json.dumps(config | {kind: "mine"}))
        with pytest.raises(ReportError, match=rf"cells/a: unknown {kind} 'mine'; .* --extend=FILE"):
            write_report(tmp_path)
    path.write_text(json.dumps(config | {"field": {"name": "gabor"}}))
    rows = path.with_name("metrics.csv")
    rows.write_text(rows.read_text().replace(",siren,", ",gabor,"))
    write_report(tmp_path)  # a field needs no more than its name
    assert "| gabor | finetune |" in (tmp_path / "tables.md").read_text()


def test_a_grid_with_holes_and_without_scores_is_reported(tmp_path):
    """A missing cell, a strategy whose every fit diverged, a scan with one patient."""

    def change(scenario, field, strategy, *_):
        return float("nan") if (scenario, field) == ("domain_expansion", "diner") else None

    write_grid(tmp_path, change=change)
    shutil.rmtree(tmp_path / "cells/domain_expansion-pe_relu-finetune-seed0")
    write_report(tmp_path)
    shutil.rmtree(tmp_path / "cells")
    write_run(tmp_path / "cells/a", "domain_expansion", "diner", "finetune", change=change)
    claims_found = {c["id"]: c for c in write_report(tmp_path)}
    assert claims_found["C2"]["verdict"] == "not tested"


@pytest.mark.usefixtures("without_figures")
def test_what_makes_runs_incomparable_is_said(tmp_path):
    write_grid(tmp_path)
    folder = tmp_path / "cells/domain_expansion-siren-distillation-seed0"
    shutil.rmtree(folder)
    write_run(folder, *folder.name.split("-")[:3], seed=3, weight=1.0, points="continuous")
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_steps": 700, "learning_rate": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "patients.json"
    path.write_text(path.read_text().replace("[1.0, 1.0, 1.0]", "[1, 1, 2]", 1))
    write_report(tmp_path)
    html = (tmp_path / "report.html").read_text()
    for warning in (
        "Runs differ in num_steps: 500, 700.",
        "Runs of SIREN in domain expansion differ in learning_rate.",
        "Not every field and strategy has the same seeds.",
        "Runs were made on different scans of patient001/cine.",
        "Few patients: 5.",
        "in domain expansion num_steps 700 instead of 500, learning_rate 0.5 instead of 0.001, "
        "distillation.points continuous instead of voxels.",
        "Not as shipped (DINER): batch_size 4096 instead of 0, ",
    ):
        assert warning in html, warning


@pytest.mark.usefixtures("without_figures")
def test_a_report_names_what_is_missing(tmp_path):
    with pytest.raises(ReportError, match="no finished run here"):
        write_report(tmp_path)
    write_grid(tmp_path)
    (tmp_path / "cells/signal_expansion-siren-finetune-seed0/summary.csv").unlink()
    with pytest.raises(ReportError, match="no scans of patient009 are kept"):
        write_report(tmp_path, patient="patient009")
    write_report(tmp_path)
    assert (
        "Not finished, and not in this report: signal_expansion-siren-finetune-seed0"
        in (tmp_path / "report.html").read_text()
    )
    shutil.copytree(
        tmp_path / "cells/signal_expansion-finer-finetune-seed0", tmp_path / "cells/again"
    )
    with pytest.raises(ReportError, match="are runs of the same"):
        write_report(tmp_path)
