import numpy as np
import pytest
from scipy import stats

from nfcl_jax.report import statistics
from nfcl_jax.report.statistics import SUMMARIES

NAN = np.nan
# Rows: after each of three tasks; columns: scores on them.
MATRIX = np.array([[30.0, NAN, NAN], [24.0, 33.0, NAN], [26.0, 27.0, 31.0]])


def summarise(matrix):
    return {name: summary(matrix) for name, summary in SUMMARIES.items()}


def test_the_summary_of_a_matrix_by_hand():
    assert summarise(MATRIX) == {
        "forgetting": ((30 - 26) + (33 - 27)) / 2,
        "backward_transfer": ((26 - 30) + (27 - 33)) / 2,
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
        "forgetting": 18, "backward_transfer": -18, "stability": 12, "plasticity": 30,
    }  # fmt: skip
    mask = np.array([[NAN, NAN], [NAN, 0.9]])
    found = summarise(mask)
    assert found.pop("plasticity") == 0.9
    assert np.isnan(list(found.values())).all()


def test_the_bootstrap_interval_agrees_with_scipys():
    values = np.random.default_rng(1).normal(30, 2, 40)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    low, high = statistics.bootstrap_interval(values)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.05)
    assert low < values.mean() < high
    assert statistics.bootstrap_interval(values) == (low, high)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.inf]])
def test_no_interval_where_there_is_none(values):
    assert np.isnan(statistics.bootstrap_interval(np.array(values))).all()


def test_the_paired_test_by_hand_and_by_scipy():
    differences = np.array([3.0, -1.0, 2.0, 0.0, 5.0, np.nan])
    test = statistics.paired_test(differences)
    assert test.effect == ((3 + 2 + 4) - 1) / (1 + 2 + 3 + 4)
    assert test.p == stats.wilcoxon([3.0, -1.0, 2.0, 5.0]).pvalue
    assert statistics.paired_test(np.arange(1.0, 8)).effect == 1
    assert statistics.paired_test(np.arange(1.0, 8)).p == pytest.approx(2.0**-6)
    assert np.isnan(statistics.paired_test(np.zeros(3))).all()


def test_of_a_single_task_nothing_can_be_forgotten():
    found = summarise(np.array([[30.0]]))
    assert found.pop("plasticity") == 30.0
    assert np.isnan(list(found.values())).all()
