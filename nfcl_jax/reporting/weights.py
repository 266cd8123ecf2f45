"""Which weight of distillation to use: a sweep over weights, and the rule that chooses."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from nfcl_jax.reporting.results import BASELINE, FIELD_TITLES, Scores

LAST_TASK_METRIC = {"domain_expansion": "psnr", "signal_expansion": "dsc"}
HARM_LIMIT = {"psnr": 1.0, "dsc": 0.02}


def weight_table(scores: Scores, weights: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """A row per scenario and weight, and which weight the rule chooses for the scenario:

    of the weights at which no field learns the last task worse than fine-tuned by more than
    HARM_LIMIT (1 dB of PSNR of the last frame, 0.02 of DSC of the mask), the one with the highest
    PSNR of the first frame (or the image) at the end, in the mean over fields; if every weight
    harms a field by more, the one with the least harm. Harm is the mean over patients of the
    paired difference; a weight at which a patient that fine-tuning scored has no score, because
    its fit diverged, is out.

    Args:
      scores: with a strategy for each weight, and fine-tuning.
      weights: of each scenario and strategy that has one.

    Returns:
      Columns: scenario, weight, first (dB), harm (of the worst field, in the unit of `metric`;
      infinite for a weight that is out), harmed (that field), metric (of the last task), chosen.
    """
    rows = []
    for scenario, metric in LAST_TASK_METRIC.items():
        found = [(f, s) for name, f, s in scores.present if name == scenario]
        fields = [field for field in FIELD_TITLES if (field, BASELINE) in found]
        for strategy in dict.fromkeys(s for _, s in found if (scenario, s) in weights):
            if not fields or any((field, strategy) not in found for field in fields):
                continue
            first = [scores.get(scenario, f, strategy, 0, 1, "psnr").mean() for f in fields]
            harm = {f: _harm(scores, scenario, f, strategy, metric) for f in fields}
            harmed = max(harm, key=harm.get)
            rows.append(
                {
                    "scenario": scenario,
                    "weight": weights[scenario, strategy],
                    "first": float(np.mean(first)),
                    "harm": harm[harmed],
                    "harmed": harmed,
                    "metric": metric,
                }
            )
    table = pd.DataFrame(rows)
    if len(table):
        table = table.sort_values(["scenario", "weight"], ignore_index=True)
        chosen = [_choose(group) for _, group in table.groupby("scenario")]
        table["chosen"] = table.index.isin(chosen)
    return table


def _harm(scores: Scores, scenario: str, field: str, strategy: str, metric: str) -> float:
    tuned = scores.get(scenario, field, BASELINE, 0, 0, metric)
    lost = tuned - scores.get(scenario, field, strategy, 0, 0, metric).reindex(tuned.index)
    return float("inf") if lost.isna().any() or lost.empty else float(lost.mean())


def _choose(group: pd.DataFrame) -> int | None:
    possible = group[np.isfinite(group["harm"])]
    if possible.empty:
        return None
    harmless = possible[possible["harm"] <= HARM_LIMIT[possible["metric"].iloc[0]]]
    return possible["harm"].idxmin() if harmless.empty else harmless["first"].idxmax()
