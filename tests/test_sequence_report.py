"""The report of a table of scans: what each field keeps, from the runs' files."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from commands import command
from test_sequence import folder  # noqa: F401
from test_table_run import ROWS, learn

import nfcl_jax
from nfcl_jax.errors import ReportError
from nfcl_jax.metrics import metric_title
from nfcl_jax.records import Score
from nfcl_jax.report.kept import Field, Kept, answer, fields_of, kept_of, means_of
from nfcl_jax.report.panels import Panel, panel_grid
from nfcl_jax.report.sequence import (
    _all_scores,
    _figure_of_pictures,
    over_tasks,
    write_sequence_report,
)
from nfcl_jax.scenarios import Lesson, Task, image_head, mask_head, teach

OTHER = "p2/left,1,cine.nii.gz#3,,10,,\np2/left,2,cine.nii.gz#1,,0,,"


def test_the_report_says_what_metrics_csv_has(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path, [*ROWS, OTHER])
    kept = write_sequence_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert [(own.patient, own.task) for own in kept] == [
        *[("p1", task) for task in (1, 2, 3, 3, 4)],
        ("p2/left", 1),
        ("p2/left", 2),
    ]
    scores = pd.read_csv(tmp_path / "patients/p1/scan/metrics.csv")
    scores = scores[(scores["image"] == "T1") & (scores["metric"] == "psnr")]
    values = scores.set_index(["trained_task", "evaluated_task"])["value"]
    assert kept[0].then == values[1, 1] and kept[0].now == values[4, 1]
    assert kept[0].lost == pytest.approx(values[1, 1] - values[4, 1])
    assert f"<td>{values[4, 1]:.1f}</td>" in page
    mean = np.mean([own.lost for own in kept if own.metric == "psnr" and own.lost is not None])
    word = "lost" if mean > 0 else "gained"
    assert f"the earlier images have {word} {abs(mean):.1f} dB of PSNR on average" in page
    for words in ("T1 (T1 and mask at 365)", "HD95 of 17, mm", "surface DSC of -4", "p2/left"):
        assert words in page
    assert "Means over fields" in page and not re.search("ACDC|frame 1|paper", page)
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {
        "over_tasks_image",
        "over_tasks_mask",
        "pictures",
    }


def test_what_is_gone_is_not_measured_and_shown_without_its_scan(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path / "run", ROWS[:2])
    (folder / "t1.nii.gz").unlink()
    learn(folder, tmp_path / "run", ROWS[:3])
    kept = write_sequence_report(tmp_path / "run")
    assert kept[0].now is None and kept[0].lost is None and kept[0].then is not None
    page = (tmp_path / "run/report.html").read_text()
    assert "1 of 4 are not measured any more" in page and "<td>not measured</td>" in page
    (folder / "t2.nii.gz").write_bytes(b"damaged")
    write_sequence_report(tmp_path / "run", "p1")
    page = (tmp_path / "run/report.html").read_text()
    assert "p1 is shown without its scans, which cannot be read" in page


def test_the_command_makes_the_report_of_a_table_and_of_what_python_learned(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path / "run", ROWS[:2])
    nfcl_jax.learn(folder / "t1.nii.gz", workdir=tmp_path / "own", settings={"num_steps": 1})
    for name, words in (("run", "p1 "), ("own", "scan ")):
        done = command("experiments.report", f"--workdir={tmp_path / name}")
        assert done.returncode == 0 and words in done.stdout, done.stderr
        assert (tmp_path / name / "report.html").stat().st_size > 20_000
    both = command("experiments.report", f"--workdir={tmp_path}")
    assert both.returncode == 2 and f"own: --workdir={tmp_path / 'own'} would" in both.stderr
    wrong = command("experiments.report", f"--workdir={tmp_path / 'run'}", "--patient=p9")
    assert wrong.returncode == 2 and "no field of p9" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def test_means_are_over_the_fields_that_learned_the_same_in_the_same_task():
    kept = [
        Kept("p1", 1, "T1", "T1 at 0", "psnr", 30.0, 28.0, 1),
        Kept("p1", 2, "mask", "mask at 0", "dsc", 0.5, 0.5, 0),
        Kept("p2", 1, "T1", "T1 at 0", "psnr", 34.0, None, 2),
        Kept("p3", 1, "T1", "T1 at 0", "psnr", 35.0, 30.0, 1),
        Kept("p4", 1, "T1", "T1 at 0", "psnr", float("nan"), float("nan"), 1),  # a failed fit
        Kept("p3", 2, "mask", "mask at 9", "dsc", 0.7, 0.7, 0),
        Kept("p5", 1, "T1", "T1 at 0", "psnr", 90.0, 90.0, 0),  # which has learned nothing since
        Kept("p6", 3, "T2", "T2 at 0", "psnr", 30.0, None, 1),
    ]
    first, second, gone = (own.words() for own in means_of(kept))
    assert (gone["when learned"], gone["now"], gone["lost"]) == ("30.0", "not measured", "")
    assert first == {
        "task": "1", "learned": "T1 at 0", "fields": "2 of 5", "score": "PSNR, dB",
        "when learned": "32.5", "now": "29.0", "lost": "3.5", "lost most": "5.0 (p3)",
    }  # fmt: skip
    assert second == {
        "task": "2", "learned": "mask", "fields": "2", "score": "DSC",
        "when learned": "0.60", "now": "0.60", "lost": "", "lost most": "",
    }  # fmt: skip


def test_a_table_with_nothing_learned_has_no_report(folder, tmp_path):  # noqa: F811
    with pytest.raises(ReportError, match="nothing is learned yet"):
        write_sequence_report(tmp_path)


def test_failed_fits_and_unfinished_fields_are_named(folder, tmp_path):  # noqa: F811
    (own,) = learn(folder, tmp_path, ROWS[:2])
    fits = pd.read_csv(own.workdir / "fits.csv")
    fits["collapsed"] = fits["task"] == 2
    fits.to_csv(own.workdir / "fits.csv", index=False)
    config = json.loads((own.workdir / "config.json").read_text())
    config["tasks"].append(config["tasks"][0] | {"name": "again"})
    (own.workdir / "config.json").write_text(json.dumps(config))
    write_sequence_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "p1: collapsed or diverged in task 2." in page
    assert "p1: 2 of 3 tasks are learned yet." in page


def test_names_from_the_table_are_escaped(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path, ["<b>x,1,t1.nii.gz,,0,<i>T1,", "<b>x,2,t2.nii.gz,,0,$a_b$,"])
    write_sequence_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<b>x" not in page and "<i>T1" not in page and "&lt;i&gt;T1" in page


def test_a_single_task_has_nothing_to_lose(folder, tmp_path):  # noqa: F811
    learn(folder, tmp_path, ROWS[:1])
    fields = fields_of(tmp_path)
    assert answer(fields, kept_of(fields)) == "One field, 1 task."
    write_sequence_report(tmp_path)
    assert not list((tmp_path / "figures").glob("over_tasks*"))
    assert metric_title("hd95_3") == "HD95 of 3, mm" and metric_title("dsc_rv") == "DSC RV"


def test_thirty_images_have_a_figure_that_names_them(tmp_path):
    head, numbers = image_head(1.0), range(1, 31)
    tasks = tuple(Task("image", (Lesson(head, (number - 1,)),)) for number in numbers)
    scores = [
        Score("p1", "image", after, number, "psnr", 30.0 - number)
        for number in numbers
        for after in range(number, 31)
    ]
    record = {"patient": "p1", "image": "scan", "rows": [{"time": 5.0 * n} for n in range(30)]}
    (axes,) = over_tasks([Field(tmp_path, record, {}, tasks, scores, [])], "image").axes
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(named) == 10 and named[0] == "1: image at 0" and named[-1] == "30: image at 145"
    assert len({line.get_color() for line in axes.lines}) == 30


def test_many_images_of_one_task_have_colours_of_their_own(tmp_path):
    heads = [image_head(1.0, f"echo {n}", n) for n in range(12)]
    tasks = (Task("echoes", tuple(Lesson(head, (0,)) for head in heads)),)
    scores = [Score("p1", head.name, 1, 1, "psnr", 30.0) for head in heads]
    record = {"patient": "p1", "image": "scan", "rows": [{"time": None}]}
    (axes,) = over_tasks([Field(tmp_path, record, {}, tasks, scores, [])], "image").axes
    assert len({line.get_color() for line in axes.lines}) == 12


def test_pictures_of_a_scan_lie_as_its_affine_says(folder, tmp_path):  # noqa: F811
    """x of these files grows to the right and y to the front: both are turned round."""
    (own,) = learn(folder, tmp_path, ROWS[:1])
    (field,) = fields_of(tmp_path)
    ((*_, figure),) = _figure_of_pictures(field, own.scan)
    scan, then, now, error = (axes.images[0].get_array() for axes in figure.axes[:4])
    slice_ = own.scan.values["T1"][0][:, :, own.scan.shape[-1] // 2]
    np.testing.assert_array_equal(scan, slice_[::-1, ::-1].T)
    np.testing.assert_allclose(now, np.clip(scan + error, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(then, now)


def test_pictures_have_the_proportions_of_their_voxels():
    rows = [("", [Panel("image", np.zeros((20, 64)))])]
    (axes,) = panel_grid(["scan"], rows, (5.0, 1.0)).axes
    assert axes.get_box_aspect() == pytest.approx(64 / 100)


def test_scores_of_labels_are_in_order_and_an_empty_mask_has_none(tmp_path):
    mask = mask_head("lesions", 1, 3, (0, 7, 300))
    tasks = tuple(teach("lesions", mask, (n,)) for n in (0, 1))
    values = {1: {"dsc": 0.5, "dsc_300": 0.6, "dsc_7": 0.4, "hd95_7": float("inf")}}
    values[2] = dict.fromkeys(values[1], float("nan"))  # of the follow-up, where they are gone
    scores = [Score("p1", "lesions", 2, n, m, v) for n in values for m, v in values[n].items()]
    record = {"patient": "p1", "image": "scan", "rows": [{"time": 0.0}, {"time": 1.0}]}
    field = Field(tmp_path, record, {}, tasks, scores, [])
    table = _all_scores([field])
    assert list(table)[3:] == ["DSC", "DSC of 7", "HD95 of 7, mm", "DSC of 300"]
    assert table.iloc[:, 3:].to_numpy().tolist() == [["0.50", "0.40", "inf", "0.60"], ["-"] * 4]
    (axes,) = over_tasks([field], "mask").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1: lesions at 0"]
