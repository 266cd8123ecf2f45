"""The claims of the paper: each can hold, fail, or be left untested."""

import json
import shutil

import pytest
from made_up import COHORT, write_grid, write_run

from nfcl_jax.report import claims
from nfcl_jax.report.report import write_report
from nfcl_jax.report.results import Scores, finished_runs, load_results
from nfcl_jax.report.scores import per_patient
from nfcl_jax.report.verdicts import shown


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    workdir = write_grid(tmp_path_factory.mktemp("made_up"), seeds=(0, 1), patients=COHORT)
    write_report(workdir)
    return workdir


def judged(workdir):
    scores = Scores(per_patient(load_results(finished_runs(workdir.glob("cells/*")))))
    return {claim["id"]: claim for claim in claims.judge(scores)}


def test_every_claim_can_hold(made_up):
    verdicts = {name: claim["verdict"] for name, claim in judged(made_up).items()}
    assert verdicts.pop("C10") == "not tested"
    assert set(verdicts.values()) == {"holds"}, verdicts


def write_ewc(workdir, **weights):
    """Runs with EWC: by weight, what the first frame has lost and the last one lacks, in dB."""
    learned = {"siren": 33, "finer": 32, "diner": 40}
    for field, value in learned.items():
        for weight, (forgotten, lacking) in weights.items():

            def change(*key, value=value, forgotten=forgotten, lacking=lacking):
                *_, patient, trained, evaluated, metric = key
                lost = forgotten if trained == 4 and evaluated == 1 else 0
                lost = lacking if trained == evaluated == 4 else lost
                return (
                    value - lost + 0.01 * (COHORT.index(patient) % 5) if metric == "psnr" else 0.5
                )

            given = {"change": change, "patients": COHORT, "weight": float(weight[1:])}
            folder = workdir / f"cells/domain_expansion-{field}-ewc_{weight}-seed0"
            write_run(folder, "domain_expansion", field, "ewc", **given)


def write_ewc_of_masks(workdir, **weights):
    """The same of an image and its mask: by weight, what the image has lost, and the DSC."""
    for field in ("siren", "finer", "diner"):
        for weight, (forgotten, dsc) in weights.items():

            def change(*key, forgotten=forgotten, dsc=dsc):
                *_, patient, trained, evaluated, metric = key
                lost = forgotten if trained == 2 and evaluated == 1 else 0
                noise = 0.001 * (COHORT.index(patient) % 5)
                return 30 - lost + noise if metric == "psnr" else dsc - noise

            given = {"change": change, "patients": COHORT, "weight": float(weight[1:])}
            folder = workdir / f"cells/signal_expansion-{field}-ewc_{weight}-seed0"
            write_run(folder, "signal_expansion", field, "ewc", **given)


def test_ewc_prevents_forgetting_only_if_one_weight_keeps_the_first_and_learns_the_last(tmp_path):
    weights = {"w1": (12, 0.2), "w100": (5, 4), "w10000": (0.5, 9)}
    masks = {"w1": (12, 0.99), "w100": (6, 0.9), "w10000": (0.5, 0.8)}
    write_ewc(write_grid(tmp_path / "a", patients=COHORT), **weights)
    assert judged(tmp_path / "a")["C10"]["verdict"] == "not tested"
    write_ewc_of_masks(tmp_path / "a", **masks)
    found = judged(tmp_path / "a")["C10"]
    assert found["verdict"] == "holds"
    assert [value["mean"] for value in found["values"]] == pytest.approx([5] * 3 + [6] * 3, abs=0.1)
    for folder in ("b", "c"):
        shutil.copytree(tmp_path / "a", tmp_path / folder)
    write_ewc_of_masks(tmp_path / "c", w1000=(1, 0.9))
    assert judged(tmp_path / "c")["C10"]["verdict"] == "does not hold"
    write_ewc(tmp_path / "b", w1000=(1, 2))
    assert judged(tmp_path / "b")["C10"]["verdict"] == "does not hold"
    # The best weight is the same for all patients.
    assert judged(tmp_path / "b")["C10"]["values"][0]["mean"] == pytest.approx(2, abs=0.05)


# For each claim a change of one score after which it does not hold any more.
BROKEN = {
    "C1": (("domain_expansion", "pe_relu", "finetune", 4, 1, "psnr"), 26.0),
    "C2": (("domain_expansion", "diner", "finetune", 4, 1, "ssim"), 0.5),
    "C3": (("domain_expansion", "siren", "distillation", 4, 4, "psnr"), 31.0),
    "C4": (("domain_expansion", "pe_relu", "distillation", 4, 1, "psnr"), 39.0),
    "C5": (("signal_expansion", "finer", "finetune", 2, 1, "psnr"), 25.0),
    "C6": (("signal_expansion", "siren", "distillation", 2, 1, "psnr"), 34.0),
    "C7": (("signal_expansion", "finer", "distillation", 2, 2, "dsc"), 0.8),
    "C8": (("signal_expansion", "diner", "finetune", 2, 2, "dsc"), 0.97),
    "C9": (("signal_expansion", "pe_relu", "finetune", 1, 1, "psnr"), 31.0),
}


@pytest.mark.parametrize("claim", BROKEN)
def test_every_claim_can_fail(claim, tmp_path):
    (scenario, field, strategy, *what), value = BROKEN[claim]

    def change(*key):
        patient = key[3]
        same = (*key[:3], *key[4:]) == (scenario, field, strategy, *what)
        return value + 0.01 * (COHORT.index(patient) % 5) if same else None

    found = judged(write_grid(tmp_path, change=change, patients=COHORT))[claim]
    assert found["verdict"] == "does not hold"
    wrong = [v["text"] for v in found["values"] if v["verdict"] == "does not hold"]
    assert found["why"] == "; ".join(wrong) and wrong


def test_a_claim_without_its_runs_is_not_tested(tmp_path):
    write_grid(tmp_path, patients=COHORT)
    shutil.rmtree(tmp_path / "cells/signal_expansion-diner-distillation-seed0")
    verdicts = {name: claim["verdict"] for name, claim in judged(tmp_path).items()}
    untested = {name for name, verdict in verdicts.items() if verdict == "not tested"}
    assert untested == {"C6", "C7", "C8", "C10"}


def test_claims_json_has_the_promised_form(made_up):
    found = json.loads((made_up / "claims.json").read_text())
    assert [claim["id"] for claim in found] == [f"C{i}" for i in range(1, 11)]
    for claim in found:
        assert {"id", "claim", "inequality", "values", "patients", "verdict"} <= set(claim)
        assert claim["verdict"] in ("holds", "does not hold", "undecided", "not tested")
        assert claim["patients"] == (0 if claim["id"] == "C10" else len(COHORT))


def test_a_psnr_is_in_db_and_nothing_else_is(made_up):
    for claim in judged(made_up).values():
        for value in claim["values"]:
            assert value["unit"] == ("dB" if "PSNR" in value["text"] else ""), value["text"]


@pytest.mark.parametrize(
    ("numbers", "unit", "words"),
    [
        ((6.294, 5.6, 6.98), "dB", "6.29 dB [5.60, 6.98]"),
        ((0.0024, -0.018, 0.023), "", "0.0024 [-0.0180, 0.0230]"),
        ((-0.0000123, -0.00002, 0.0), "", "0.0000 [0.0000, 0.0000]"),
        ((0.5, None, None), "", "0.50"),
        ((None, None, None), "dB", "-"),
    ],
)
def test_a_number_is_shown_with_its_unit_and_as_many_decimals_as_it_needs(numbers, unit, words):
    value = dict(zip(("mean", "low", "high"), numbers, strict=True))
    value |= {"unit": unit, "sense": "<", "limit": 3.0}
    assert shown(value) == (words, "< 3 dB" if unit else "< 3")


def test_one_patient_decides_nothing(tmp_path):
    for claim in judged(write_grid(tmp_path, patients=COHORT[:1])).values():
        assert claim["verdict"] in ("undecided", "not tested") and claim["needed"] is None


def test_a_claim_whose_interval_reaches_over_its_limit_is_undecided(tmp_path):
    """PE-ReLU's image, which must be below 30 dB, is at 29.9 on average, and 1 dB up or down."""

    def change(*key):
        scenario, field, strategy, patient, *what = key
        if (scenario, field, strategy, *what) == (
            "signal_expansion",
            "pe_relu",
            "finetune",
            1,
            1,
            "psnr",
        ):
            return 29.9 + (1 if COHORT.index(patient) % 2 else -1)
        return None

    found = judged(write_grid(tmp_path, change=change, patients=COHORT))["C9"]
    assert found["verdict"] == "undecided"
    (value,) = (v for v in found["values"] if v["verdict"] == "undecided")
    assert value["low"] < 30 < value["high"]
    # Student's t of 400 patients is 1.966: 1.966 / sqrt(n) < 0.1, with the ES images' 0.005 dB.
    assert found["needed"] == value["needed"] and 380 < found["needed"] < 460


def test_a_patient_without_a_score_leaves_a_claim_untested(tmp_path):
    """Such as one whose fit diverged: the others are not all there is."""

    def change(*key):
        diverged = key[:2] == ("signal_expansion", "siren") and key[3] == COHORT[3]
        return float("nan") if diverged else None

    for name, found in judged(write_grid(tmp_path, change=change, patients=COHORT)).items():
        if name in ("C5", "C6", "C7", "C8"):
            assert found["verdict"] == "not tested" and COHORT[3] in found["why"], name
