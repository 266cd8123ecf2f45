"""Sequences that are longer than the paper's, and that grow both the domain and the output."""

import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from commands import command

from nfcl_jax.data.acdc import read_image
from nfcl_jax.errors import DataError


def test_the_two_phases_are_frames_on_one_scale(phantom_root):
    folder = phantom_root / "patient001"
    both = read_image(folder, "phases", 2)
    low, high = both.intensity_range
    assert both.intensities.min() == 0 and both.intensities.max() == 1
    for frame, phase in enumerate(("ED", "ES")):
        one = read_image(folder, phase, 1)
        (number,) = one.frame_numbers
        path = folder / f"patient001_frame{number:02d}.nii.gz"
        values = both.intensities[frame] * (high - low) + low
        np.testing.assert_allclose(values, nib.load(path).get_fdata(), rtol=1e-5, atol=1e-3)
        np.testing.assert_array_equal(both.labels[frame], one.labels[0])
        assert both.frame_numbers[frame] == number


def test_phases_on_two_grids_are_refused(phantom_root, tmp_path):
    folder = tmp_path / "patient001"
    shutil.copytree(phantom_root / "patient001", folder)
    (number,) = read_image(folder, "ES", 1).frame_numbers
    for path in folder.glob(f"*_frame{number:02d}*"):
        scan = nib.load(path)
        nib.save(scan.slicer[:, :-1], path)
    with pytest.raises(DataError, match=r"ED and ES differ in shape .* one grid would be right"):
        read_image(folder, "phases", 2)


@pytest.mark.slow
def test_twelve_frames_and_a_mix_run_from_their_config(phantom_root, tmp_path):
    done = command(
        "experiments.paper", "--config=configs/long.py", f"--config.data.root={phantom_root}",
        "--config.data.patients=patient001", "--config.fields=siren", "--config.num_steps=2",
        "--config.overrides=*:field.width=16,*:batch_size=64", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 of 4 cells are done" in done.stdout
    figures = {path.stem for path in tmp_path.glob("figures/*.png")}
    assert {"domain_expansion_12_over_tasks", "mixed_expansion_first_and_last"} <= figures
    rows = pd.read_csv(tmp_path / "cells/mixed_expansion-siren-distillation-seed0/metrics.csv")
    assert set(rows[rows.evaluated_task == 3].metric) >= {"dsc"} and rows.trained_task.max() == 3
    rows = pd.read_csv(tmp_path / "cells/domain_expansion_12-siren-finetune-seed0/metrics.csv")
    assert len(rows[rows.metric == "psnr"]) == 12 * 13 / 2
    done = command("experiments.report", "--extend=configs/long.py", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
