"""The claims of the paper: each can hold, fail, or be left untested."""

import json
import shutil

import pytest
from made_up import PATIENTS, write_grid

from nfcl_jax.report import claims
from nfcl_jax.report.report import write_report
from nfcl_jax.report.results import Scores, finished_runs, load_results, per_patient


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    workdir = write_grid(tmp_path_factory.mktemp("made_up"), seeds=(0, 1))
    write_report(workdir)
    return workdir


def judged(workdir):
    scores = Scores(per_patient(load_results(finished_runs(workdir.glob("cells/*")))))
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
