import pandas as pd
import pytest

from nfcl_jax.reporting.results import Scores
from nfcl_jax.reporting.weights import weight_table

WEIGHTS = {("domain_expansion", f"weight {weight:g}"): weight for weight in (1.0, 10.0, 100.0)}


def make_scores(first, last, diverged=()):
    """Domain expansion of two fields with two patients; PSNR by strategy and field. Of the
    `diverged` strategies DINER's second patient has no scores."""
    rows = []
    for strategy in ("finetune", *(strategy for _, strategy in WEIGHTS)):
        for i, field in enumerate(("siren", "diner")):
            for patient, offset in (("patient001", -1.0), ("patient002", 1.0)):
                for task, table in ((1, first), (4, last)):
                    value = table[strategy][i] + offset
                    if strategy in diverged and (field, patient) == ("diner", "patient002"):
                        value = float("nan")
                    rows.append(
                        ("domain_expansion", field, strategy, 4, task, "psnr", patient, value)
                    )
    columns = [
        "scenario", "field", "strategy", "trained_task", "evaluated_task", "metric", "patient",
        "value",
    ]  # fmt: skip
    return Scores(pd.DataFrame(rows, columns=columns))


FIRST = {"finetune": (18, 20), "weight 1": (28, 30), "weight 10": (30, 31), "weight 100": (32, 33)}


@pytest.mark.parametrize(
    ("last", "chosen", "harmed"),
    [
        # The most stable weight harms DINER by 1.5 dB, the next by 0.9.
        ({"weight 1": (33, 40), "weight 10": (33, 39.1), "weight 100": (33, 38.5)}, 10, "diner"),
        # None harms.
        ({"weight 1": (33, 40), "weight 10": (33, 40), "weight 100": (32.5, 40)}, 100, "siren"),
        # All harm: the least.
        ({"weight 1": (31, 40), "weight 10": (30, 39), "weight 100": (30, 38)}, 1, "siren"),
    ],
)
def test_the_rule_takes_the_most_stable_weight_that_harms_no_field(last, chosen, harmed):
    table = weight_table(make_scores(FIRST, {"finetune": (33, 40)} | last), WEIGHTS)
    assert table["weight"].tolist() == [1, 10, 100]
    assert table["first"].tolist() == [29, 30.5, 32.5]
    row = table[table["chosen"]].iloc[0]
    assert table["chosen"].sum() == 1
    assert (row["weight"], row["harmed"]) == (chosen, harmed)


def test_a_weight_at_which_a_patient_diverged_is_out():
    last = {strategy: (33, 40) for strategy in FIRST}
    table = weight_table(make_scores(FIRST, last, diverged=["weight 100"]), WEIGHTS)
    assert table["chosen"].tolist() == [False, True, False]
    assert (table["harm"].iloc[2], table["harmed"].iloc[2]) == (float("inf"), "diner")
    everywhere = [strategy for _, strategy in WEIGHTS]
    assert not weight_table(make_scores(FIRST, last, everywhere), WEIGHTS)["chosen"].any()


def test_a_weight_that_not_every_field_has_is_left_out():
    scores = make_scores(FIRST, FIRST)
    scores.present.remove(("domain_expansion", "diner", "weight 100"))
    assert weight_table(scores, WEIGHTS)["weight"].tolist() == [1, 10]
    assert weight_table(scores, {}).empty
