"""report.html: one file with everything, the viewer's slices included, that needs no network."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from nfcl_jax.fields import field_title
from nfcl_jax.metrics import METRICS, metrics_of
from nfcl_jax.report.results import BASELINE
from nfcl_jax.scenarios import SCENARIOS

VERDICTS = ("holds", "does not hold", "undecided", "not tested")


def answer(continual: pd.DataFrame, claims: Sequence[Mapping[str, Any]]) -> str:
    """The report in a few sentences; `continual` is of `tables.continual_table`."""
    verdicts = [claim["verdict"] for claim in claims]
    counts = ", ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in VERDICTS)
    sentences = [_loss(continual, name) for name in SCENARIOS]
    sentences.append(f"The paper's {len(claims)} claims on these patients: {counts}.")
    return " ".join(filter(None, sentences))


def _loss(continual: pd.DataFrame, scenario: str) -> str:
    """What the earlier tasks lost by the end since each was learned, of the field whose loss is the
    median (of an even number the larger one), and the fields to which distillation was no help:
    "Learning four frames in turn, SIREN lost 11.2 dB of the earlier ones on average; with
    distillation it lost 3.1 dB. DINER lost no less with it." A field is left out if a patient has
    no score of it, as where a fit diverged."""
    about = SCENARIOS[scenario]
    metric = metrics_of(about.ends[0].head.kind)[0]
    wanted = (scenario, metric, "backward_transfer")
    lost: dict[str, dict[str, float]] = {}
    for row in continual.itertuples():
        everyone = row.scored == row.patients and np.isfinite(row.mean)
        if (row.scenario, row.metric, row.summary) == wanted and everyone:
            lost.setdefault(row.strategy, {})[row.field] = -row.mean
    if not (tuned := lost.get(BASELINE, {})):
        return ""
    field = sorted(tuned, key=tuned.get)[len(tuned) // 2]
    of = f"{about.meanwhile}, {field_title(field)}"
    words = f"{of} {_gained_or_lost(tuned[field], metric)} of {about.forgotten}"
    distilled = lost.get("distillation", {})
    if field in distilled:
        words += f"; with distillation it {_gained_or_lost(distilled[field], metric)}"
    others = [f for f in tuned if f in distilled and f != field and distilled[f] >= tuned[f]]
    more = f" {' and '.join(map(field_title, others))} lost no less with it." if others else ""
    return f"{words}.{more}"


def _gained_or_lost(loss: float, metric: str) -> str:
    _, *unit = METRICS[metric].title.split(", ")
    number = f"{abs(loss):.{METRICS[metric].decimals}f}"
    return " ".join(["gained" if loss < 0 else "lost", number, *unit])


def settings_table(configs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The settings of runs, a row per setting, with all values that it has; without a table's
    tasks."""
    rows: dict[str, dict[str, None]] = {}
    for config in configs:
        for name, value in _flat({k: v for k, v in config.items() if k != "tasks"}):
            rows.setdefault(name, {})[str(value) or "-"] = None
    return pd.DataFrame(
        [{"setting": name, "value": ", ".join(values)} for name, values in rows.items()]
    )


def _flat(config: Mapping[str, Any], prefix: str = ""):
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def render(template: str, **contents: Any) -> str:
    """A page; `contents` are the names that its template uses."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nfcl_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**contents)
