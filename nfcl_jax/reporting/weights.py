"""Which weight of distillation to use: a sweep over weights, and the rule that chooses."""

from collections.abc import Mapping

import pandas as pd

from nfcl_jax.reporting.results import BASELINE, FIELD_TITLES, Scores

PLASTICITY = {"domain_expansion": "psnr", "signal_expansion": "dsc"}  # of the last task
HARM_LIMIT = {"psnr": 1.0, "dsc": 0.02}


def weight_table(scores: Scores, weights: Mapping[str, float]) -> pd.DataFrame:
    """A row per scenario and weight, and which weight the rule chooses for the scenario:

    of the weights at which no field learns the last task worse than fine-tuned by more than
    HARM_LIMIT (1 dB of PSNR of the last frame, 0.02 of DSC of the mask), the one with the highest
    PSNR of the first frame (or the image) at the end, in the mean over fields; if every weight
    harms a field by more, the one with the least harm. Means are over patients first.

    Args:
      scores: with a strategy for each weight, and fine-tuning.
      weights: of each strategy that has one.

    Returns:
      Columns: scenario, weight, stability (dB), harm (the worst field's loss of plasticity, in the
      unit of `plasticity`), harmed (that field), plasticity (its metric), chosen.
    """
    rows = []
    for scenario, metric in PLASTICITY.items():
        found = [(f, s) for name, f, s in scores.present if name == scenario]
        fields = [field for field in FIELD_TITLES if (field, BASELINE) in found]
        for strategy in dict.fromkeys(s for _, s in found if s in weights):
            if not fields or any((field, strategy) not in found for field in fields):
                continue
            stable = [scores.get(scenario, f, strategy, 0, 1, "psnr").mean() for f in fields]
            harm = {
                f: scores.get(scenario, f, BASELINE, 0, 0, metric).mean()
                - scores.get(scenario, f, strategy, 0, 0, metric).mean()
                for f in fields
            }
            harmed = max(harm, key=harm.get)
            rows.append(
                {
                    "scenario": scenario,
                    "weight": weights[strategy],
                    "stability": sum(stable) / len(stable),
                    "harm": harm[harmed],
                    "harmed": harmed,
                    "plasticity": metric,
                }
            )
    table = pd.DataFrame(rows)
    if len(table):
        chosen = [_choose(group) for _, group in table.groupby("scenario")]
        table["chosen"] = table.index.isin(chosen)
    return table


def _choose(group: pd.DataFrame) -> int:
    harmless = group[group["harm"] <= HARM_LIMIT[group["plasticity"].iloc[0]]]
    return group["harm"].idxmin() if harmless.empty else harmless["stability"].idxmax()
