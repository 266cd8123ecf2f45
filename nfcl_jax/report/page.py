"""report.html: one file with everything, the viewer's slices included, that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pandas as pd

from nfcl_jax.fields import field_title
from nfcl_jax.metrics import METRICS, metrics_of
from nfcl_jax.report.results import BASELINE, FinishedRun, Scores
from nfcl_jax.scenarios import SCENARIOS

VERDICTS = ("holds", "does not hold", "undecided", "not tested")


def answer(scores: Scores, claims: Sequence[Mapping[str, Any]]) -> str:
    """The report in a few sentences."""
    verdicts = [claim["verdict"] for claim in claims]
    counts = ", ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in VERDICTS)
    sentences = [_loss(scores, name) for name in SCENARIOS]
    sentences.append(f"The paper's {len(claims)} claims on these patients: {counts}.")
    return " ".join(filter(None, sentences))


def _loss(scores: Scores, scenario: str) -> str:
    """What the first task lost by the end, of the field whose loss is the median (of an even number
    the larger one): "Learning three more frames, SIREN lost 11.2 dB of the first; with distillation
    3.1 dB." """
    about = SCENARIOS[scenario]
    metric = metrics_of(about.ends[0].head.kind)[0]
    lost: dict[str, dict[str, float]] = {}
    for field, strategy in scores.of(scenario):
        key = (scenario, field, strategy)
        mean = (scores.get(*key, 1, 1, metric) - scores.get(*key, 0, 1, metric)).mean()
        if np.isfinite(mean):
            lost.setdefault(strategy, {})[field] = mean
    if not (tuned := lost.get(BASELINE, {})):
        return ""
    field = sorted(tuned, key=tuned.get)[len(tuned) // 2]
    of = f"{about.meanwhile}, {field_title(field)}"
    words = f"{_gained_or_lost(tuned[field], metric)} of {about.forgotten}"
    distilled = lost.get("distillation", {}).get(field)
    if distilled is None:
        return f"{of} {words}."
    return f"{of} {words}; with distillation it {_gained_or_lost(distilled, metric)}."


def _gained_or_lost(loss: float, metric: str) -> str:
    _, *unit = METRICS[metric].title.split(", ")
    number = f"{abs(loss):.{METRICS[metric].decimals}f}"
    return " ".join(["gained" if loss < 0 else "lost", number, *unit])


def settings_table(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """The settings of the runs, a row per setting, with all values that it has."""
    rows: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in _flat(run.config):
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


def render_page(**contents: Any) -> str:
    """The page; `contents` are the names that page.html uses."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nfcl_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(**contents)


def data_url(contents: bytes, kind: str) -> str:
    """A picture as an address that holds it; `kind` is "png" or "svg"."""
    mime = {"png": "image/png", "svg": "image/svg+xml"}[kind]
    return f"data:{mime};base64,{base64.b64encode(contents).decode()}"
