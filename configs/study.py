"""What the paper leaves open, one choice after the other, for `experiments.study`."""

from ml_collections import ConfigDict

from configs import paper

# DINER's image and mask do not share drawn points well: docs/performance.md.
DRAWN_APART = "signal*-diner-distillation-*:distillation.points=voxels"


def get_config() -> ConfigDict:
    config = paper.get_config()
    config.strategies = ",".join(paper.METHOD)
    config.only = ""  # names of choices, comma-separated, * is any; all if empty
    # Each choice is the grid with these fields changed; they are run in the order of their names.
    config.choices = ConfigDict(
        {
            "as_shipped": {},
            "frames_range": {"data": {"intensity_range": "frames"}},
            "diner_lecun": {"overrides": "diner:field.initialisation=lecun,diner:warmup_steps=0"},
            "diner_lecun_warmup": {"overrides": "diner:field.initialisation=lecun"},
            "diner_no_warmup": {"overrides": "diner:warmup_steps=0"},
            "diner_4096_points": {"overrides": f"diner:batch_size=4096,{DRAWN_APART}"},
            "diner_optimiser_kept": {"overrides": "diner:keep_optimiser=True"},
            "others_optimiser_kept": {"overrides": _others("keep_optimiser=True")},
            "others_16384_points": {"overrides": _others("batch_size=16384")},
            "others_all_points": {"overrides": _others("batch_size=0")},
        }
    )
    return config


def _others(assignment: str) -> str:
    """For every field but DINER."""
    return ",".join(f"{field}:{assignment}" for field in ("pe_relu", "siren", "finer"))
