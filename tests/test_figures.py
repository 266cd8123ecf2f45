"""What the figures of a grid name and group; test_report.py has their numbers."""

import itertools

import pytest
from made_up import write_run

from nfcl_jax.report import figures
from nfcl_jax.report.results import Scores, finished_runs, load_results
from nfcl_jax.report.scores import per_patient
from nfcl_jax.report.statistics import mean_interval


def test_figures_have_one_row_for_a_strategy_whose_weight_each_field_chooses(tmp_path):
    def rows():
        patients = per_patient(load_results(finished_runs(tmp_path.glob("*"))))
        drawn = figures.task_matrix(Scores(patients), "domain_expansion")
        return [axes.get_ylabel() for axes in drawn.axes if "after task" in axes.get_ylabel()]

    for field, weight in (("siren", 7), ("finer", 10), ("diner", 1)):
        own = ("domain_expansion", field)
        write_run(tmp_path / f"{field}-f", *own, "finetune")
        write_run(tmp_path / f"{field}-d", *own, "distillation", weight=weight)
    assert rows() == ["fine-tuned\nafter task", "distilled\nafter task"]
    write_run(tmp_path / "another", "domain_expansion", "siren", "distillation", weight=10)
    names = ["fine-tuned", "distilled, weight 7", "distilled, weight 10", "distilled"]
    assert sorted(rows()) == sorted(f"{name}\nafter task" for name in names)


@pytest.mark.parametrize("fields", [["siren"], ["siren", "finer", "diner"]])
def test_no_word_of_the_matrices_is_cut(fields, tmp_path):
    for field, strategy in itertools.product(fields, ("finetune", "distillation")):
        write_run(tmp_path / f"{field}-{strategy}", "domain_expansion", field, strategy)
    patients = per_patient(load_results(finished_runs(tmp_path.glob("*"))))
    figure = figures.task_matrix(Scores(patients), "domain_expansion")
    figure.draw_without_rendering()
    for axes in figure.axes:
        drawn = axes.get_tightbbox()
        assert drawn.x0 >= 0 and drawn.y0 >= 0
        assert drawn.x1 <= figure.bbox.x1 and drawn.y1 <= figure.bbox.y1


def test_an_axis_covers_the_patients_and_not_all_of_an_interval(tmp_path):
    write_run(tmp_path / "run", "signal_expansion", "siren", "finetune")
    results = load_results(finished_runs([tmp_path / "run"]))
    for patient, psnr in (("patient001", 5.0), ("patient002", 35.0)):  # far apart
        own = (
            (results.patient == patient) & (results.metric == "psnr") & (results.trained_task == 2)
        )
        results.loc[own, "value"] = psnr
    two = results["patient"].isin(["patient001", "patient002"])
    scores = Scores(per_patient(results[two]))
    psnr, *_ = figures.first_and_last(scores, "signal_expansion").axes
    own = scores.seen("signal_expansion", "siren", "finetune", 2, 1, "psnr")
    before = scores.seen("signal_expansion", "siren", "finetune", 1, 1, "psnr").mean()
    low, high = psnr.get_ylim()
    assert mean_interval(own.to_numpy())[0] < low < 0 and own.max() < high < 1.1 * max(*own, before)


def test_ten_strategies_beside_fine_tuning_look_different(tmp_path):
    write_run(tmp_path / "f", "domain_expansion", "siren", "finetune")
    for weight in range(1, 11):
        own = ("domain_expansion", "siren", "distillation")
        write_run(tmp_path / f"d{weight}", *own, weight=float(weight))
    scores = Scores(per_patient(load_results(finished_runs(tmp_path.glob("*")))))
    (legend,) = figures.earlier_against_last(scores, "domain_expansion").legends
    _, *strategies = legend.legend_handles
    looks = {(own.get_fillstyle(), own.get_markerfacecolor()) for own in strategies}
    assert len(looks) == len(strategies) == 11
