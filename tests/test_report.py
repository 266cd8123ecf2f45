"""The report: what its tables, figures, claims and page say is what is in metrics.csv."""

import base64
import csv
import dataclasses
import io
import json
import re
import shutil
import time
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver

import nfcl_jax
from configs.base import FIELDS, STRATEGIES
from nfcl_jax.continual import Fit, Metric
from nfcl_jax.reporting import claims, figures, page, tables
from nfcl_jax.reporting.records import Label, write_csv
from nfcl_jax.reporting.report import write_report
from nfcl_jax.reporting.results import (
    ReportError,
    Scores,
    finished_runs,
    load_results,
    per_patient,
)
from nfcl_jax.reporting.shown import load_shown
from nfcl_jax.reporting.statistics import bootstrap_interval, paired_test
from nfcl_jax.scenarios import SCENARIOS

WEIGHTS = {"domain_expansion": 1.0, "signal_expansion": 1.0}
PATIENTS = [f"patient{i:03d}" for i in range(1, 6)]
METRICS = {"image": ("psnr", "ssim"), "mask": ("dsc", "dsc_rv", "dsc_myo", "dsc_lv")}
# PSNR at the end of a first frame or image, and of a last frame, such that every claim holds.
FIRST = {
    ("domain_expansion", "finetune"): {"pe_relu": 28, "siren": 18, "finer": 19, "diner": 17},
    ("domain_expansion", "distillation"): {"pe_relu": 28.5, "siren": 28, "finer": 29, "diner": 36},
    ("signal_expansion", "finetune"): {"pe_relu": 2, "siren": 12, "finer": 11, "diner": 4},
    ("signal_expansion", "distillation"): {"pe_relu": 23, "siren": 28, "finer": 26, "diner": 33},
}
LEARNED = {"pe_relu": 28.5, "siren": 33, "finer": 32, "diner": 40}


def score(scenario, field, strategy, patient, trained, evaluated, metric):
    """Made-up scores, different for every patient; `metric` in dB over 40 where it is none."""
    spread = 0.3 * (PATIENTS.index(patient) - 2)
    if metric.startswith("dsc"):
        failing = (field, strategy, patient) == ("diner", "finetune", PATIENTS[0])
        return 0.46 if failing else 0.95 - 0.001 * (field == "diner") + 0.01 * spread
    value = LEARNED[field]
    last = len(SCENARIOS[scenario]())
    if trained > evaluated:
        end = FIRST[scenario, strategy][field]
        value = end if trained == last and evaluated == 1 else (end + value) / 2
    if metric == "psnr":
        return value + spread
    if field == "diner" and scenario == "domain_expansion" and trained > evaluated:
        value = 39 if strategy == "finetune" else 39.5
    return value / 41 + 0.01 * spread


def write_run(folder, scenario, field, strategy, seed=0, change=lambda *key: None, weight=1.0):
    """A run's folder as `experiments.train` leaves it, without checkpoints."""
    folder.mkdir(parents=True)
    config = {
        "scenario": scenario, "field": {"name": field}, "strategy": strategy, "seed": seed,
        "num_steps": 500, "batch_size": 4096,
    }  # fmt: skip
    if strategy != "finetune":
        config[strategy] = {"weight": weight}
    tasks = SCENARIOS[scenario]()
    rows, fits = [], []
    for patient in PATIENTS:
        for image in ["cine"] if scenario == "domain_expansion" else ["ED", "ES"]:
            for trained in range(1, len(tasks) + 1):
                fits.append(Fit(patient, image, trained, 1e-3, 0.0, False, False, 0))
                for evaluated in range(1, trained + 1):
                    for metric in METRICS[tasks[evaluated - 1].output.name]:
                        key = (scenario, field, strategy, patient, trained, evaluated, metric)
                        value = change(*key)
                        value = score(*key) if value is None else value
                        value += 0.01 * (image == "ES") + 0.005 * seed
                        row = Metric(patient, image, trained, evaluated, metric, value)
                        rows.append(row)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "patients.json").write_text("[]")
    write_csv(folder / "metrics.csv", rows, Label(scenario, field, strategy, seed))
    write_csv(folder / "fits.csv", fits)
    (folder / "summary.csv").write_text("the mark of a finished run")


def write_grid(workdir, seeds=(0,), **change):
    for scenario in SCENARIOS:
        for field in FIELDS:
            for strategy in STRATEGIES:
                for seed in seeds:
                    name = f"{scenario}-{field}-{strategy}-seed{seed}"
                    write_run(workdir / "cells" / name, scenario, field, strategy, seed, **change)
    return workdir


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    workdir = write_grid(tmp_path_factory.mktemp("made_up"), seeds=(0, 1))
    write_report(workdir, WEIGHTS)
    return workdir


def read_csv(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def recomputed(workdir):
    """{(scenario, field, strategy, trained, evaluated, metric): {patient: mean over images and
    seeds}}, from the metrics.csv of the runs by nothing but this."""
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
    paired = [row for row in rows if row["table"] == "paired"]
    assert len(paired) == 4 * (4 * 2 + 2 + 4)
    for row in paired:
        last = "4" if row["scenario"] == "domain_expansion" else "2"
        where = (last, row["evaluated_task"], row["metric"])
        kept, lost = (expected[row["scenario"], row["field"], s, *where] for s in STRATEGIES[::-1])
        assert float(row["difference"]) == pytest.approx(np.mean([kept[p] - lost[p] for p in kept]))
        differences = np.round([kept[p] - lost[p] for p in kept], 9)
        low, high = bootstrap_interval(differences)
        assert (float(row["low"]), float(row["high"])) == pytest.approx((low, high))
        p, effect = paired_test(differences)
        assert (float(row["p"] or "nan"), float(row["effect"] or "nan")) == pytest.approx(
            (p, effect), nan_ok=True
        )
    continual = [row for row in rows if row["table"] == "continual" and row["metric"] == "psnr"]
    assert len(continual) == 4 * 2 * 2 * 4
    for row in continual:
        last = 4 if row["scenario"] == "domain_expansion" else 2

        def means(pairs, key=tuple(row[name] for name in names)):
            found = [expected.get((*key, str(s), str(e), "psnr")) for s, e in pairs]
            return np.array([np.mean(list(each.values())) for each in found if each])

        learned = means([(e, e) for e in range(1, last + 1)])  # a mask has no PSNR
        end = means([(last, e) for e in range(1, last)])
        lost = learned[: last - 1] - end
        by_hand = {
            "stability": np.mean(end),
            "plasticity": np.mean(learned),
            "backward_transfer": -np.mean(lost),
            "forgetting": np.mean(lost),  # nothing here gets better later
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


def drawn_means(axes):
    """Places of the error bars in a plot."""
    bars = [container.lines[0] for container in axes.containers]
    return {(round(float(b.get_xdata()[0]), 6), round(float(b.get_ydata()[0]), 6)) for b in bars}


def test_the_figures_show_the_numbers_of_metrics_csv(made_up):
    expected = {k: np.mean(list(v.values())) for k, v in recomputed(made_up).items()}
    scores = Scores(per_patient(load_results(finished_runs(made_up.glob("cells/*"), WEIGHTS))))
    for axes, metric in zip(figures.first_against_last(scores).axes, METRICS["image"], strict=True):
        assert drawn_means(axes) == {
            tuple(
                round(expected["domain_expansion", f, s, "4", frame, metric], 6)
                for frame in ("4", "1")
            )
            for f in FIELDS
            for s in STRATEGIES
        }
    wanted = (("psnr", "1"), ("ssim", "1"), ("dsc", "2"))
    for axes, (metric, task) in zip(figures.image_and_mask(scores).axes, wanted, strict=True):
        assert {y for _, y in drawn_means(axes)} == {
            round(expected["signal_expansion", f, s, "2", task, metric], 6)
            for f in FIELDS
            for s in STRATEGIES
        }
    matrix = figures.task_matrix(scores)
    texts = [text.get_text() for axes in matrix.axes for text in axes.texts]
    assert sorted(texts) == sorted(
        f"{value:.1f}" for key, value in expected.items() if key[0] == "domain_expansion"
        and key[-1] == "psnr"
    )  # fmt: skip


def judged(workdir):
    scores = Scores(per_patient(load_results(finished_runs(workdir.glob("cells/*"), WEIGHTS))))
    return {claim["id"]: claim for claim in claims.judge(scores)}


def test_every_claim_can_hold(made_up):
    verdicts = {name: claim["verdict"] for name, claim in judged(made_up).items()}
    assert verdicts.pop("C10") == "not tested"
    assert set(verdicts.values()) == {"holds"}, verdicts


# For each claim a change of one score after which it does not hold any more.
BROKEN = {
    "C1": (("domain_expansion", "pe_relu", "finetune", 4, 1, "psnr"), 26.0),
    "C2": (("domain_expansion", "diner", "finetune", 4, 1, "ssim"), 0.5),
    "C3": (("domain_expansion", "siren", "distillation", 4, 4, "psnr"), 31.0),
    "C4": (("domain_expansion", "pe_relu", "distillation", 4, 1, "psnr"), 39.0),
    "C5": (("signal_expansion", "finer", "finetune", 2, 1, "psnr"), 25.0),
    "C6": (("signal_expansion", "siren", "distillation", 2, 1, "psnr"), 34.0),
    "C7": (("signal_expansion", "finer", "distillation", 2, 2, "dsc"), 0.8),
    "C8": (("signal_expansion", "diner", "finetune", 2, 2, "dsc"), 0.9),
    "C9": (("signal_expansion", "pe_relu", "finetune", 1, 1, "psnr"), 31.0),
}


@pytest.mark.parametrize("claim", BROKEN)
def test_every_claim_can_fail(claim, tmp_path):
    (scenario, field, strategy, *what), value = BROKEN[claim]

    def change(*key):
        patient = key[3]
        same = (*key[:3], *key[4:]) == (scenario, field, strategy, *what)
        return value + 0.01 * PATIENTS.index(patient) if same else None

    found = judged(write_grid(tmp_path, change=change))[claim]
    assert found["verdict"] == "does not hold"
    wrong = [v["text"] for v in found["values"] if not v["holds"]]
    assert found["why"] == "; ".join(wrong) and wrong


def test_a_claim_without_its_runs_is_not_tested(tmp_path):
    write_grid(tmp_path)
    shutil.rmtree(tmp_path / "cells/signal_expansion-diner-distillation-seed0")
    verdicts = {name: claim["verdict"] for name, claim in judged(tmp_path).items()}
    untested = {name for name, verdict in verdicts.items() if verdict == "not tested"}
    assert untested == {"C6", "C7", "C8", "C10"}


def test_claims_json_has_the_promised_form(made_up):
    found = json.loads((made_up / "claims.json").read_text())
    assert [claim["id"] for claim in found] == [f"C{i}" for i in range(1, 11)]
    for claim in found:
        assert {"id", "claim", "inequality", "values", "patients", "verdict"} <= set(claim)
        assert claim["verdict"] in ("holds", "does not hold", "not tested")
        assert claim["patients"] == (0 if claim["id"] == "C10" else len(PATIENTS))


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
    table = tables.score_table(per_patient(load_results(finished_runs([folder], WEIGHTS))))
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
    write_report(tmp_path, WEIGHTS)
    assert (
        "Collapsed or diverged: signal_expansion, diner, finetune, 0: patient001/ED"
        in (tmp_path / "report.html").read_text()
    )


def test_several_weights_are_told_apart_and_drawn(tmp_path):
    """The default keeps its name, so that claims and figures are about it."""
    for strategy, weight in (("finetune", 1.0), ("distillation", 0.1), ("distillation", 1.0)):
        name = f"{strategy}{weight}"
        write_run(tmp_path / "cells" / name, "domain_expansion", "siren", strategy, weight=weight)
    names = [run.strategy for run in finished_runs(tmp_path.glob("cells/*"), WEIGHTS)]
    assert names == ["finetune", "distillation, weight 0.1", "distillation"]
    write_report(tmp_path, WEIGHTS)
    assert {"weights.svg", "first_against_last.svg"} <= {
        path.name for path in (tmp_path / "figures").iterdir()
    }
    text = (tmp_path / "tables.md").read_text()
    assert "| domain expansion | 0.1 |" in text and "| domain expansion | 1 |" in text
    (tmp_path / "cells/distillation0.1/summary.csv").unlink()
    alone = finished_runs(tmp_path.glob("cells/*"), {"domain_expansion": 7.0})
    assert [run.strategy for run in alone] == ["finetune", "distillation"]


def test_a_grid_with_holes_and_without_scores_is_reported(tmp_path):
    """A missing cell, a strategy whose every fit diverged, a scan with one patient."""

    def change(scenario, field, strategy, *_):
        return float("nan") if (scenario, field) == ("domain_expansion", "diner") else None

    write_grid(tmp_path, change=change)
    shutil.rmtree(tmp_path / "cells/domain_expansion-pe_relu-finetune-seed0")
    write_report(tmp_path, WEIGHTS)
    shutil.rmtree(tmp_path / "cells")
    write_run(tmp_path / "cells/a", "domain_expansion", "diner", "finetune", change=change)
    claims_found = {c["id"]: c for c in write_report(tmp_path, WEIGHTS)}
    assert claims_found["C2"]["verdict"] == "not tested"


def test_what_makes_runs_incomparable_is_said(tmp_path):
    write_grid(tmp_path)
    folder = tmp_path / "cells/domain_expansion-siren-distillation-seed0"
    config = json.loads((folder / "config.json").read_text())
    other = config | {"num_steps": 700, "learning_rate": 0.5, "seed": 3}
    (folder / "config.json").write_text(json.dumps(other))
    record = {"patient": "p", "image": "cine", "shape": [4, 9, 9, 2], "frame_numbers": [1]}
    for i, name in enumerate(("siren-distillation", "siren-finetune")):
        place = {"spacing": [1, 1, 1 + i], "affine": []}
        path = tmp_path / f"cells/domain_expansion-{name}-seed0/patients.json"
        path.write_text(json.dumps([record | place]))
    write_report(tmp_path, WEIGHTS)
    html = (tmp_path / "report.html").read_text()
    for warning in (
        "Runs differ in num_steps: 500, 700.",
        "Runs of SIREN differ in learning_rate.",
        "Not every field and strategy has the same seeds.",
        "Runs were made on different scans of p/cine.",
        "Few patients: 5.",
    ):
        assert warning in html, warning


def test_a_report_names_what_is_missing(tmp_path):
    with pytest.raises(ReportError, match="no finished run here"):
        write_report(tmp_path, WEIGHTS)
    write_grid(tmp_path)
    (tmp_path / "cells/signal_expansion-siren-finetune-seed0/summary.csv").unlink()
    with pytest.raises(ReportError, match="no scans of patient009 are kept"):
        write_report(tmp_path, WEIGHTS, patient="patient009")
    write_report(tmp_path, WEIGHTS)
    assert (
        "Not finished, and not in this report: signal_expansion-siren-finetune-seed0"
        in (tmp_path / "report.html").read_text()
    )
    shutil.copytree(
        tmp_path / "cells/signal_expansion-finer-finetune-seed0", tmp_path / "cells/again"
    )
    with pytest.raises(ReportError, match="are runs of the same"):
        write_report(tmp_path, WEIGHTS)


@pytest.fixture(scope="module")
def real_report(runs):
    """Of the small grid that was really run."""
    for scenario in SCENARIOS:
        for field in FIELDS:
            for strategy in STRATEGIES:
                workdir = runs(scenario, field, strategy).parents[1]
    write_report(workdir, WEIGHTS)
    return workdir


def test_the_report_has_everything(real_report):
    names = {path.name for path in (real_report / "figures").iterdir()}
    stems = (
        "first_against_last", "image_and_mask", "task_matrix",
        "reconstructions_patient001_cine", "reconstructions_patient001_ED",
    )  # fmt: skip
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    html = (real_report / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|https://arxiv.org)', html)
    assert "Cut down: 150 steps" in html
    for what, decision, _ in page.DECISIONS:
        assert what.replace("'", "&#39;") in html and decision.replace("'", "&#39;") in html


def test_the_viewer_holds_what_the_fields_say(real_report):
    html = (real_report / "report.html").read_text()
    data = json.loads(re.search(r'id="viewer-data">(.*?)</script>', html, re.S)[1])
    scan = next(s for s in load_shown(real_report) if s.image == "ED")
    shown = data["scans"]["patient001/ED"]
    assert len(shown["views"]) == 4 * 2 * 3
    run = nfcl_jax.open_run(real_report / "cells/signal_expansion-diner-distillation-seed0")
    outputs = run.field("patient001", 2, "ED").at_voxels(np.arange(scan.intensities.size))
    outputs = outputs.reshape(*scan.shape, 5)
    for look, values in (
        ("image", np.rint(255 * np.clip(outputs[..., 0], 0, 1))),
        ("mask", np.argmax(outputs[..., 1:], axis=-1)),
    ):
        png, words = shown["views"][f"diner|distillation|mask|{look}"]
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
        slices = picture.reshape(scan.shape[2], scan.shape[1], scan.shape[0])
        np.testing.assert_array_equal(slices.transpose(2, 1, 0), values)
        assert re.match(r"PSNR \d+\.\d dB, SSIM|DSC 0\.\d\d", words)
    truth = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["truth"]["mask"]))))
    assert set(np.unique(truth)) == {0, 1, 2, 3}


def viewer_of(real_report, scans):
    runs = finished_runs(sorted(real_report.glob("cells/signal_expansion-siren-*")), WEIGHTS)
    return page.make_viewer(runs, scans, load_results(runs))


@pytest.mark.parametrize(
    ("budget", "slices"), [(1_000_000, [1, 2, 3, 4, 5, 6]), (200_000, [2, 5]), (1, [4])]
)
def test_a_large_viewer_leaves_out_slices_and_says_so(real_report, monkeypatch, budget, slices):
    monkeypatch.setattr(page, "MAX_VOXELS", budget)
    scans = [scan for scan in load_shown(real_report) if scan.image != "cine"]
    viewer = viewer_of(real_report, scans)
    assert json.loads(viewer.data)["scans"]["patient001/ED"]["slices"] == slices
    assert viewer.notes == [] or viewer.notes[0].startswith("One slice of ")
    assert bool(viewer.notes) == (len(slices) < 6)


def test_a_scan_that_is_not_the_runs_is_not_shown(real_report):
    scans = [scan for scan in load_shown(real_report) if scan.image != "cine"]
    moved = dataclasses.replace(scans[0], affine=scans[0].affine + 1)
    viewer = viewer_of(real_report, [moved, scans[1]])
    assert list(json.loads(viewer.data)["scans"]) == [scans[1].name]
    assert "signal_expansion-siren-distillation-seed0" in viewer.notes[0]
    assert viewer_of(real_report, [moved]) is None


@pytest.fixture(params=[(1200, "light"), (390, "dark")], ids=["desktop", "phone"])
def browser(request):
    """A headless Chromium of the given width and colour scheme."""
    if not shutil.which("chromedriver"):
        pytest.skip("no chromedriver here: the page is not opened in a browser")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    width, scheme = request.param
    phone = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    yield driver
    driver.quit()


def test_the_page_in_a_browser(real_report, browser):
    """No errors, nothing wider than the window, and every control changes what is shown."""
    browser.get((real_report / "report.html").as_uri())
    script = browser.execute_script
    painted = "return ['truth', 'reconstruction', 'error'].map(i => document.getElementById(i))"

    def pictures():
        """What the canvases show, once it has changed or half a second has passed."""
        time.sleep(0.5)
        return script(painted + ".map(c => c.toDataURL())")

    before = pictures()
    assert len(set(before)) == 3
    for control, value in [
        ("slice", "0"),
        ("look", "frame 3"),
        ("trained", "frame 3"),
        ("field", "diner"),
        ("strategy", "distillation"),
        ("image", "ES"),
        ("look", "mask"),
    ]:
        event = "input" if control == "slice" else "change"
        script(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(arguments[2]))",
            control, value, event,
        )  # fmt: skip
        after = pictures()
        assert after[1] != before[1], control
        before = after
    assert script("return document.getElementById('score').textContent").startswith("DSC")
    root = "document.documentElement"
    for details in ("", "document.querySelectorAll('details').forEach(d => d.open = true);"):
        assert script(f"{details} return {root}.scrollWidth <= {root}.clientWidth")
    assert browser.get_log("browser") == []
