import pandas as pd
import pytest

from nfcl_jax.reporting.results import Scores
from nfcl_jax.reporting.weights import weight_table

WEIGHTS = {"weight 1": 1.0, "weight 10": 10.0, "weight 100": 100.0}


def make_scores(first, last):
    """Domain expansion of two fields with two patients; PSNR by strategy and field."""
    rows = []
    for strategy in ("finetune", *WEIGHTS):
        for i, field in enumerate(("siren", "diner")):
            for patient, offset in (("patient001", -1.0), ("patient002", 1.0)):
                for task, table in ((1, first), (4, last)):
                    value = table[strategy][i] + offset
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
    assert table["stability"].tolist() == [29, 30.5, 32.5]
    row = table[table["chosen"]].iloc[0]
    assert table["chosen"].sum() == 1
    assert (row["weight"], row["harmed"]) == (chosen, harmed)


def test_a_weight_that_not_every_field_has_is_left_out():
    scores = make_scores(FIRST, FIRST)
    scores.present.remove(("domain_expansion", "diner", "weight 100"))
    assert weight_table(scores, WEIGHTS)["weight"].tolist() == [1, 10]
    assert weight_table(scores, {}).empty
