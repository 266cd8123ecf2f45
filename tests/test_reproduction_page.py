"""docs/reproduction.md: the numbers of PE-ReLU's scale are those of the runs that are kept."""

import pandas as pd
from conftest import REPOSITORY
from test_strategies_page import matrix

from nfcl_jax.config import read_config
from nfcl_jax.report.tables import markdown


def row_of_scale(run, scale):
    """What PE-ReLU has of patient001 by the paper's recipe, fine-tuned and distilled."""
    row, patients = {"`field.scale`": scale}, ["patient001"]
    for scenario, what in (("domain_expansion", "first frame"), ("signal_expansion", "image")):
        tuned, kept = (
            matrix(run, scenario, "pe_relu", "psnr", strategy, patients).iloc[0]
            for strategy in ("finetune", "distillation")
        )
        last = max(task for task, _ in kept.index)
        row |= {what: f"{kept[1, 1]:.1f}", f"{what}, fine-tuned": f"{tuned[last, 1]:.1f}"}
        row |= {f"{what}, distilled": f"{kept[last, 1]:.1f}"}
        if scenario == "domain_expansion":
            row["last frame, distilled"] = f"{kept[last, last]:.1f}"
    dice = matrix(run, "signal_expansion", "pe_relu", "dsc", patients=patients)
    return row | {"DSC, distilled": f"{dice[2, 2].mean():.2f}"}


def table_of_scales():
    return markdown(pd.DataFrame([row_of_scale("paper", "1"), row_of_scale("scale", "0.95")]))


def test_the_table_of_scales_is_that_of_its_runs():
    assert table_of_scales() in (REPOSITORY / "docs/reproduction.md").read_text()
    cells = REPOSITORY / "docs/reproduction/scale/cells"
    for cell in cells.iterdir():  # which differ in the scale, and in who is fitted
        config = read_config(cell / "config.json")
        theirs = read_config(REPOSITORY / f"docs/reproduction/paper/cells/{cell.name}/config.json")
        assert config["field"].pop("scale") == 0.95 and theirs["field"].pop("scale") == 1
        config["data"]["patients"] = ""
        assert config == theirs
    assert len([*cells.iterdir()]) == 4
    last = (
        matrix(run, "domain_expansion", field, "psnr", patients=["patient001"])[4, 4].item()
        for run, field in (("scale", "pe_relu"), ("paper", "siren"))
    )
    assert next(last) > next(last)  # as the page says
