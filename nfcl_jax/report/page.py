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


def answer(scores: Scores, claims: Sequence[Mapping[str, Any]]) -> str:
    """The report in two sentences."""
    verdicts = [claim["verdict"] for claim in claims]
    counts = ", ".join(
        f"{verdicts.count(verdict)} {words}"
        for verdict, words in (
            ("holds", "hold"),
            ("does not hold", "do not"),
            ("undecided", "are undecided"),
            ("not tested", "could not be tested"),
        )
    )
    parts = []
    for name, scenario in SCENARIOS.items():
        if tuned := _losses(scores, name, BASELINE):
            distilled = _losses(scores, name, "distillation")
            with_it = f" ({distilled} with distillation)" if distilled else ""
            parts.append(f"{tuned} of {scenario.does}{with_it}")
    claimed = f"Of the paper's {len(claims)} claims {counts} on these patients."
    return f"A field loses {', and '.join(parts)}. {claimed}" if parts else claimed


def _losses(scores: Scores, scenario: str, strategy: str) -> str:
    """What the first task lost by the end, of the field that loses least and the one that loses
    most, such as "-1.3 (PE-ReLU) to 15.4 dB (SIREN)"."""
    metric, lost = metrics_of(SCENARIOS[scenario].ends[0].head.kind)[0], {}
    for field in [f for f, s in scores.of(scenario) if s == strategy]:
        key = (scenario, field, strategy)
        mean = (scores.get(*key, 1, 1, metric) - scores.get(*key, 0, 1, metric)).mean()
        if np.isfinite(mean):
            lost[field_title(field)] = mean
    if not lost:
        return ""
    _, *unit = METRICS[metric].title.split(", ")
    least, most = min(lost, key=lost.get), max(lost, key=lost.get)
    words = " ".join([f"{lost[most]:.{METRICS[metric].decimals}f}", *unit, f"({most})"])
    if least != most:
        words = f"{lost[least]:.{METRICS[metric].decimals}f} ({least}) to {words}"
    return words.replace("-", "\N{MINUS SIGN}", 1) if lost[least] < 0 else words


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
