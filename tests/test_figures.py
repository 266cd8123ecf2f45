"""What the figures of a grid name and group; test_report.py has their numbers."""

from made_up import write_run

from nfcl_jax.report import figures
from nfcl_jax.report.results import Scores, finished_runs, load_results
from nfcl_jax.report.scores import per_patient


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
