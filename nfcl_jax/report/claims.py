"""The claims C1 to C10 of the paper (arXiv 2511.21409) as inequalities on scores, and whether they
hold.

The limits below put the paper's words into numbers, and are not to be fitted to results.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from nfcl_jax.fields import field_title
from nfcl_jax.report.results import BASELINE, Scores
from nfcl_jax.report.verdicts import Claim, Inequality, above, below, verdict
from nfcl_jax.strategies import strategy_title

DB = "dB"
SUBSTANTIAL = 3.0  # dB of PSNR: twice or half the mean squared error
SAME = 1.0  # dB: "near", "without harming"
SAME_SSIM = 0.02
KEPT_SSIM = 0.1  # of SSIM may go where it is "kept high"
FAILED = 10.0  # dB below what it was: ten times the mean squared error
HIGH_QUALITY = 30.0  # dB
HIGH_SSIM = 0.8
LEARNED_DSC = 0.835  # rounds to 0.84, the paper's lowest
FAILED_DSC = 0.5  # of a patient's worst fit
MOST = 0.5  # of the patients: fewer are "individual" ones

# By name: another field or strategy joins no claim.
DOMAIN, SIGNAL, DISTILLATION = "domain_expansion", "signal_expansion", "distillation"
FIELDS = ("pe_relu", "siren", "finer", "diner")
OTHERS = ("pe_relu", "siren", "finer")  # than DINER


def first_at_end(scores, scenario, field, strategy, metric="psnr"):
    """Of the first frame, or the image, after the last task."""
    return scores.seen(scenario, field, strategy, 0, 1, metric)


def first_when_learned(scores, scenario, field, strategy, metric="psnr"):
    return scores.seen(scenario, field, strategy, 1, 1, metric)


def last_at_end(scores, scenario, field, strategy, metric="psnr"):
    """Of the last frame, or the mask, after the last task."""
    return scores.seen(scenario, field, strategy, 0, 0, metric)


def gap(scores, field, metric):
    """What the first frame is behind the last, fine-tuned, at the end."""
    last = last_at_end(scores, DOMAIN, field, BASELINE, metric)
    return last - first_at_end(scores, DOMAIN, field, BASELINE, metric)


def lost(scores, scenario, field, metric="psnr"):
    """What the first frame, or the image, has lost since it was learned, fine-tuned."""
    learned = first_when_learned(scores, scenario, field, BASELINE, metric)
    return learned - first_at_end(scores, scenario, field, BASELINE, metric)


def gain(scores, scenario, field, metric="psnr"):
    """What distillation adds on the first frame, or the image, at the end."""
    kept = first_at_end(scores, scenario, field, DISTILLATION, metric)
    return kept - first_at_end(scores, scenario, field, BASELINE, metric)


def diner_above_all(what: str, score: Callable[[str], pd.Series]) -> Iterable[Inequality]:
    """DINER has more PSNR than every other field; `score` is that of a field."""
    for f in OTHERS:
        yield above(f"DINER - {field_title(f)}: {what}", score("diner") - score(f), 0.0, DB)


def c1(scores):
    what = "last - first frame"
    for f in ("siren", "finer", "diner"):
        behind = gap(scores, f, "psnr")
        yield above(f"{field_title(f)}: PSNR, {what}", behind, SUBSTANTIAL, DB)
    yield below(f"PE-ReLU: PSNR, {what}", gap(scores, "pe_relu", "psnr"), SAME, DB)
    for f in ("siren", "finer"):
        for g in ("pe_relu", "diner"):
            more = gap(scores, f, "ssim") - gap(scores, g, "ssim")
            yield above(f"{field_title(f)} - {field_title(g)}: SSIM, {what}", more, 0.0)


def c2(scores):
    psnr, ssim = (lost(scores, DOMAIN, "diner", metric) for metric in ("psnr", "ssim"))
    yield above("DINER: PSNR lost on the first frame", psnr, SUBSTANTIAL, DB)
    yield below("DINER: SSIM lost on the first frame", ssim, KEPT_SSIM)
    kept = first_at_end(scores, DOMAIN, "diner", BASELINE, "ssim")
    yield above("DINER: SSIM of the first frame", kept, HIGH_SSIM)


def c3(scores):
    for f in FIELDS:
        for metric, slack, unit in (("psnr", SAME, DB), ("ssim", SAME_SSIM, "")):
            name = f"{field_title(f)}: {metric.upper()}"
            gained = gain(scores, DOMAIN, f, metric)
            yield above(f"{name} gained on the first frame", gained, 0.0, unit)
            distilled = last_at_end(scores, DOMAIN, f, DISTILLATION, metric)
            harm = last_at_end(scores, DOMAIN, f, BASELINE, metric) - distilled
            yield below(f"{name} lost on the last frame", harm, slack, unit)


def c4(scores):
    what = "PSNR gained on the first frame"
    yield from diner_above_all(what, lambda f: gain(scores, DOMAIN, f))
    for f in ("siren", "finer"):
        more = gain(scores, DOMAIN, f) - gain(scores, DOMAIN, "pe_relu")
        yield above(f"{field_title(f)} - PE-ReLU: {what}", more, 0.0, DB)


def c5(scores):
    for f in FIELDS:
        image = lost(scores, SIGNAL, f)
        yield above(f"{field_title(f)}: PSNR lost on the image", image, FAILED, DB)


def c6(scores):
    for f in FIELDS:
        image = gain(scores, SIGNAL, f)
        yield above(f"{field_title(f)}: PSNR gained on the image", image, SUBSTANTIAL, DB)
    yield from diner_above_all(
        "PSNR of the image, distilled",
        lambda f: first_at_end(scores, SIGNAL, f, DISTILLATION),
    )


def c7(scores):
    for f in FIELDS:
        for strategy in (BASELINE, DISTILLATION):
            dsc = last_at_end(scores, SIGNAL, f, strategy, "dsc")
            yield above(f"{field_title(f)}: DSC, {strategy_title(strategy)}", dsc, LEARNED_DSC)


def c8(scores):
    tuned = last_at_end(scores, SIGNAL, "diner", BASELINE, "dsc")
    distilled = last_at_end(scores, SIGNAL, "diner", DISTILLATION, "dsc")
    for f in OTHERS:
        more = last_at_end(scores, SIGNAL, f, BASELINE, "dsc") - tuned
        yield above(f"{field_title(f)} - DINER: DSC, fine-tuned", more, 0.0)
    failed, still = (
        (scores.get(SIGNAL, "diner", s, 0, 0, "dsc", "worst") < FAILED_DSC).astype(float)
        for s in (BASELINE, DISTILLATION)
    )
    what = "DINER: share of patients failed on"
    yield above(f"{what}, fine-tuned", failed, 0.0, share=True)
    yield below(f"{what}, fine-tuned", failed, MOST, share=True)
    yield above(f"{what}, fine-tuned - distilled", failed - still, 0.0)
    yield above("DINER: DSC, distilled - fine-tuned", distilled - tuned, 0.0)


def c9(scores):
    for scenario, what, score in (
        (DOMAIN, "PSNR of the last frame", last_at_end),
        (SIGNAL, "PSNR of the image before the mask", first_when_learned),
    ):
        poor = score(scores, scenario, "pe_relu", BASELINE)
        yield below(f"PE-ReLU: {what}", poor, HIGH_QUALITY, DB)
        for f in ("siren", "finer"):
            better = score(scores, scenario, f, BASELINE) - poor
            yield above(f"{field_title(f)} - PE-ReLU: {what}", better, 0.0, DB)
        yield from diner_above_all(
            what, lambda f, score=score, scenario=scenario: score(scores, scenario, f, BASELINE)
        )


def c10(scores):
    for scenario, cost, what in (
        (DOMAIN, worse_of_both, "first frame or last"),
        (SIGNAL, lost_unless_unlearned, "image"),
    ):
        for f in ("siren", "finer", "diner"):  # which forget, as C1 has it
            least = at_the_best_weight(scores, scenario, f, cost)
            name = f"{field_title(f)}: PSNR lost with EWC at its best weight, {what}"
            yield above(name, least, SUBSTANTIAL, DB)


def at_the_best_weight(scores, scenario, field, cost):
    """The least of what EWC costs at several weights, on average; one is not the best of any."""
    tried = [s for f, s in scores.of(scenario) if f == field and s.split(", ")[0] == "ewc"]
    if len(tried) < 2:
        return pd.Series(dtype=float)
    costs = [cost(scores, field, strategy) for strategy in tried]
    return min(costs, key=lambda own: own.mean() if own.notna().all() else float("inf"))


def worse_of_both(scores, field, strategy):
    """What the first frame has lost since it was learned, or the last one lacks against
    fine-tuning: whichever is more, in each patient."""
    forgotten = first_when_learned(scores, DOMAIN, field, strategy)
    forgotten = forgotten - first_at_end(scores, DOMAIN, field, strategy)
    not_learned = last_at_end(scores, DOMAIN, field, BASELINE)
    not_learned = not_learned - last_at_end(scores, DOMAIN, field, strategy)
    return pd.concat([forgotten, not_learned], axis=1).max(axis=1, skipna=False)


def lost_unless_unlearned(scores, field, strategy):
    """What the image has lost since it was learned; FAILED of a patient whose mask is not."""
    image = first_when_learned(scores, SIGNAL, field, strategy)
    image = image - first_at_end(scores, SIGNAL, field, strategy)
    dsc = last_at_end(scores, SIGNAL, field, strategy, "dsc")
    return image.where((dsc >= LEARNED_DSC) | image.isna(), FAILED)


CLAIMS = (
    Claim(
        "C1",
        "Domain expansion: fine-tuned fields are poor on the first frame; SIREN and FINER forget "
        "most (tested in SSIM: of PSNR DINER may lose more, see C2), PE-ReLU hardly.",
        f"The first frame ends more than {SUBSTANTIAL:g} dB below the last for SIREN, FINER and "
        f"DINER, by less than {SAME:g} dB for PE-ReLU; in SSIM it ends further below for SIREN and "
        "FINER than for PE-ReLU and DINER.",
        c1,
    ),
    Claim(
        "C2",
        "Domain expansion: fine-tuned DINER keeps SSIM high on the first frame while its PSNR "
        "drops.",
        f"DINER's first frame loses more than {SUBSTANTIAL:g} dB of PSNR and less than "
        f"{KEPT_SSIM:g} of SSIM, which stays above {HIGH_SSIM:g}.",
        c2,
    ),
    Claim(
        "C3",
        "Domain expansion: distillation improves the first frame for every field, without harming "
        "the last.",
        "With distillation every field's first frame has a higher PSNR and SSIM, and its last "
        f"frame at most {SAME:g} dB and {SAME_SSIM:g} less.",
        c3,
    ),
    Claim(
        "C4",
        "Domain expansion: the gain is largest for DINER and smallest for PE-ReLU.",
        "What distillation adds to the first frame's PSNR is more for DINER than for every other "
        "field, and more for every other field than for PE-ReLU.",
        c4,
    ),
    Claim(
        "C5",
        "Signal expansion: fine-tuned, every field fails on the image after learning the mask; "
        "PE-ReLU and DINER forget here too.",
        f"Every field's image loses more than {FAILED:g} dB.",
        c5,
    ),
    Claim(
        "C6",
        "Signal expansion: distillation improves the image substantially for every field; DINER "
        "ends best.",
        f"Distillation adds more than {SUBSTANTIAL:g} dB to every field's image; with it DINER's "
        "has a higher PSNR than every other field's.",
        c6,
    ),
    Claim(
        "C7",
        "Signal expansion: every field learns the mask, with and without distillation, DSC 0.84 to "
        "1.00.",
        f"The mean DSC is above {LEARNED_DSC:g} for every field and both strategies.",
        c7,
    ),
    Claim(
        "C8",
        "Signal expansion: fine-tuned DINER has the lower DSC, from failing on individual "
        "patients; distillation mends that.",
        "Fine-tuned, every other field has a higher DSC than DINER; DINER fails on some patients "
        f"(DSC of a fit below {FAILED_DSC:g}), but on fewer than half; with distillation it fails "
        "on fewer and has a higher DSC.",
        c8,
    ),
    Claim(
        "C9",
        "PE-ReLU does not reach high reconstruction quality in either scenario; DINER "
        "reconstructs best.",
        f"PE-ReLU's last frame, and its image before the mask, have a PSNR below {HIGH_QUALITY:g} "
        "dB and below every other field's; DINER's have a higher one than every other field's.",
        c9,
    ),
    Claim(
        "C10",
        "Elastic weight consolidation does not prevent the forgetting.",
        f"SIREN, FINER and DINER lose more than {SUBSTANTIAL:g} dB with EWC at whichever of the "
        "weights tried is best: on the first frame since it was learned, or on the last against "
        "fine-tuning, in each patient whichever is more; and on the image, where a mask whose DSC "
        f"is below {LEARNED_DSC:g} counts as {FAILED:g} dB.",
        c10,
    ),
)


def judge(scores: Scores) -> list[dict[str, Any]]:
    """The verdict on every claim, see `verdicts.verdict`."""
    return [verdict(claim, scores) for claim in CLAIMS]
