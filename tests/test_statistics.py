import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nfcl_jax.report import statistics
from nfcl_jax.report.caveats import FEW_PATIENTS
from nfcl_jax.report.results import KEY
from nfcl_jax.report.statistics import SUMMARIES
from nfcl_jax.report.tables import continual_table

NAN = np.nan
# Rows: after each of three tasks; columns: scores on them.
MATRIX = np.array([[30.0, NAN, NAN], [24.0, 33.0, NAN], [26.0, 27.0, 31.0]])


def summarise(matrix):
    return {name: summary(matrix) for name, summary in SUMMARIES.items()}


def test_the_summary_of_a_matrix_by_hand():
    assert summarise(MATRIX) == {
        "forgetting": ((30 - 26) + (33 - 27)) / 2,
        "backward_transfer": ((26 - 30) + (27 - 33)) / 2,
        "largest_drop": 33 - 27,
        "stability": (26 + 27) / 2,
        "plasticity": (30 + 33 + 31) / 3,
    }


def test_forgetting_is_since_the_best_time_and_transfer_since_the_first():
    matrix = np.array([[20.0, NAN, NAN], [29.0, 33.0, NAN], [25.0, 33.0, 31.0]])
    assert statistics.average_forgetting(matrix) == ((29 - 25) + 0) / 2
    assert statistics.backward_transfer(matrix) == ((25 - 20) + 0) / 2


def test_a_score_that_some_tasks_do_not_have_counts_where_it_is():
    image = np.array([[30.0, NAN], [12.0, NAN]])  # PSNR: the second task is a mask
    assert summarise(image) == {
        "forgetting": 18, "backward_transfer": -18, "largest_drop": 18, "stability": 12,
        "plasticity": 30,
    }  # fmt: skip
    mask = np.array([[NAN, NAN], [NAN, 0.9]])
    found = summarise(mask)
    assert found.pop("plasticity") == 0.9
    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize("patients", [2, 7, 40])
def test_the_interval_of_a_mean_is_scipys(patients):
    values = np.random.default_rng(1).normal(30, 2, patients)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert statistics.mean_interval(values) == pytest.approx(tuple(expected))


def test_the_interval_of_a_share_by_hand():
    """Of none of n: up to 1 - 0.025^(1 / n)."""
    low, high = statistics.share_interval(0, 7)
    assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 7))
    assert statistics.share_interval(7, 7) == pytest.approx((1 - high, 1))
    assert np.isnan(statistics.share_interval(0, 0)).all()


def test_so_many_patients_are_needed_and_not_one_fewer():
    rng = np.random.default_rng(0)
    for distance, deviation in ((1.0, 2.0), (-0.3, 1.0), (5.0, 1.0)):
        needed = statistics.patients_needed(distance, deviation)
        for patients, decided in ((needed - 1, False), (needed, True)):
            if patients > 1:
                values = rng.normal(size=patients)
                values = (values - values.mean()) / values.std(ddof=1) * deviation
                low, _ = statistics.mean_interval(values + abs(distance))
                assert (low > 0) == decided
    assert statistics.patients_needed(0.0, 1.0) is None
    assert statistics.patients_needed(1e-3, 1.0) is None


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.inf]])
def test_no_interval_where_there_is_none(values):
    assert np.isnan(statistics.mean_interval(np.array(values))).all()


@pytest.mark.parametrize("patients", [FEW_PATIENTS - 1, FEW_PATIENTS])
def test_few_patients_are_those_whose_interval_reaches_a_deviation(patients):
    values = np.random.default_rng(2).normal(size=patients)
    low, high = statistics.mean_interval(values)
    assert ((high - low) / 2 > np.std(values, ddof=1)) == (patients < FEW_PATIENTS)


def test_of_a_single_task_nothing_can_be_forgotten():
    found = summarise(np.array([[30.0]]))
    assert found.pop("plasticity") == 30.0
    assert np.isnan(list(found.values())).all()


def test_a_gap_is_closed_from_fine_tuning_to_joint_training():
    """A row for each strategy but the ends; nothing where one of the ends is missing."""
    ends = {"finetune": 20.0, "joint": 36.0, "distillation": 32.0, "ewc": 20.0}

    def rows_of(strategies):
        rows = [
            ("domain_expansion", "siren", s, trained, evaluated, "psnr", f"patient{p}", value + p)
            for s in strategies
            for p in (1, 2)
            for trained, evaluated, value in ((1, 1, 35.0), (2, 1, ends[s]), (2, 2, 30.0))
        ]
        table = continual_table(pd.DataFrame(rows, columns=[*KEY, "patient", "value"]))
        return table[table["summary"] == "gap_closed"].set_index("strategy")["mean"].to_dict()

    assert rows_of(ends) == {"distillation": pytest.approx(75), "ewc": pytest.approx(0)}
    assert rows_of(["finetune", "distillation"]) == rows_of(["joint", "ewc"]) == {}


def test_a_gap_is_of_the_means_of_patients_who_have_all_three_and_only_where_there_is_one():
    kept, tuned, joint = np.array([[30.0, 24, 28, NAN], [20, 20, 20, 20], [40, 30, 35, 35]])
    expected = 100 * (10 + 4 + 8) / (20 + 10 + 15)
    assert statistics.gap_closed(kept, tuned, joint) == pytest.approx(expected)
    assert np.isnan(statistics.gap_closed(kept, joint, tuned))  # joint training is worse
    uncertain = np.array([40.0, 19, 20, 20])  # better on the mean alone
    assert np.isnan(statistics.gap_closed(kept, tuned, uncertain))
    one = [np.array([value]) for value in (30.0, 20.0, 40.0)]
    assert statistics.gap_closed(*one) == pytest.approx(50)
    assert np.isnan(statistics.gap_closed(*(values * NAN for values in one)))
