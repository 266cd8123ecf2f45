"""How much memory a cohort of whole frames takes on an accelerator, by the compiled programs' own
analysis: `vmap` over scans, compiled for the processor at hand.

    python -m benchmarks.memory --out=runs/memory
"""

from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks.tables import machine
from experiments.launch.cli import launch
from nfcl_jax.batching import device_mesh
from nfcl_jax.config import make_config
from nfcl_jax.fields import FIELDS
from nfcl_jax.plan import FILLED, bytes_for
from nfcl_jax.runner import recipe_of
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import SCENARIOS, tasks_of
from nfcl_jax.storage import write_file

_OUT = flags.DEFINE_string("out", None, "folder for memory.md")
_SHAPE = flags.DEFINE_list("shape", ["216", "256", "10"], "voxels of a frame")
_SCANS = flags.DEFINE_integer("scans", 100, "of the cohort", lower_bound=1)
_GIGABYTES = flags.DEFINE_list("gigabytes", ["16", "80"], "of a device's memory that JAX reserves")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    sizes = [float(size) for size in _GIGABYTES.value]
    fit = [f"fit {size:g} GB" for size in sizes]
    header = ["scenario", "field", "a scan, MB", f"{_SCANS.value} scans, GB", *fit]
    lines = [header, ["---"] * len(header)]
    for scenario in SCENARIOS:
        for field in FIELDS:
            config = make_config(scenario, field, "distillation")
            own = bytes_for(
                scan_of(scenario, tuple(map(int, _SHAPE.value))),
                tasks_of(config),
                recipe_of(config),
                device_mesh(),
                at_once=True,
            )
            whole = own.fixed + _SCANS.value * own.per_scan
            lines.append(
                [
                    scenario.replace("_", " "),
                    FIELDS[field].title,
                    f"{own.per_scan / 1e6:.0f}",
                    f"{whole / 1e9:.1f}",
                    *(f"{int((FILLED * size * 1e9 - own.fixed) / own.per_scan)}" for size in sizes),
                ]
            )
            print(*lines[-1], sep="\t", flush=True)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "memory.md", f"{machine(with_torch=False)}\n\n{table}\n")


def scan_of(scenario: str, shape: tuple[int, ...]) -> Scan:
    """A scan of zeros: the values change no size."""
    frames = SCENARIOS[scenario].num_frames
    return Scan(
        patient="zeros",
        image=SCENARIOS[scenario].images[0],
        values={
            "image": np.zeros((frames, *shape), np.float32),
            "mask": np.zeros((frames, *shape), np.uint8),
        },
        frame_numbers=tuple(range(1, frames + 1)),
        spacing=(1.5, 1.5, 10.0),
        affine=np.eye(4),
    )


if __name__ == "__main__":
    launch(main, required=["out"])
