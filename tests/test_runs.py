"""Runs, opened: what is there, fields as functions, and NIfTI files that lie over the scans."""

import json
import shutil
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from test_readme import run as command
from test_train import read_csv, value

import nfcl_jax
from nfcl_jax import nifti, sizes
from nfcl_jax.checkpoints import CheckpointError
from nfcl_jax.data.acdc import read_scans
from nfcl_jax.fields import FIELDS, create_field, init_params
from nfcl_jax.opened import Field

SHAPE = (4, 9, 8, 3)
FRAMES = (1, 6, 11, 16)
# Rotated about two axes, sheared, and off the origin.
AFFINE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.5)
    @ np.array([[1.5, 0.2, 0.0], [0.0, 1.8, 0.3], [0.0, 0.0, 8.0]]),
    [-80.0, 35.0, 12.5],
)
RIGID = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([-1.5, 1.8, 8.0]), [-80.0, 35.0, 12.5]
)


def make_field(name, shape=SHAPE, **rest):
    module = create_field({"name": name, "width": 16, "depth": 2}, 2, int(np.prod(shape)))
    params = init_params(module, jax.random.key(0), axes=len(shape))
    if name == "diner":  # whose entries are too close to each other to tell them apart
        table = jax.random.normal(jax.random.key(1), params["params"]["table"].shape)
        params = {"params": params["params"] | {"table": table}}
    return Field(module, params, shape, AFFINE, FRAMES[: shape[0]], **rest)


def grid_of(shape):
    """Voxels (points, axes) as (x, y, z, frame), and the same in [-1, 1]."""
    index = np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), axis=-1)
    voxels = np.roll(index, 3 - len(shape), axis=1)
    return voxels, 2 * voxels / (np.roll(shape, 3 - len(shape)) - 1) - 1


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[1:]])
@pytest.mark.parametrize("name", FIELDS)
def test_coordinates_and_voxels_are_the_same_places(name, shape):
    field = make_field(name, shape)
    voxels, coords = grid_of(shape)
    at_voxels = field.at_voxels(np.arange(len(coords)))
    np.testing.assert_allclose(field(coords), at_voxels, atol=1e-4)
    in_mm = make_field(name, shape, units="mm")
    mm = nib.affines.apply_affine(AFFINE, voxels[:, :3])
    if len(shape) == 4:  # frames 1, 6, 11 and 16 of 16
        mm = np.column_stack([mm, np.array([0, 5, 10, 15])[voxels[:, 3]] / 16])
    np.testing.assert_allclose(in_mm.to_mm(coords), mm, atol=1e-9)
    np.testing.assert_allclose(in_mm.to_grid(mm), coords, atol=1e-9)
    np.testing.assert_allclose(in_mm(mm), at_voxels, atol=1e-4)


@pytest.mark.parametrize("units", ["grid", "mm"])
@pytest.mark.parametrize("name", FIELDS)
def test_gradients_are_finite_differences(name, units):
    field = make_field(name, units=units, interpolate=True)
    # Not where the pieces of a piecewise linear interpolation meet.
    coords = np.random.default_rng(0).uniform(-0.3, 0.3, (20, 4)) + np.array([0, 0, 0.5, 0])
    coords = field.to_mm(coords) if units == "mm" else coords
    # Small steps where 2^9 pi is a frequency, of a like size in both units.
    sizes = (2e-5 if name == "pe_relu" else 1e-3) * np.array(
        [6, 6, 8, 0.5] if units == "mm" else [1, 1, 1, 1]
    )
    gradient = field.gradient(coords)
    assert gradient.shape == (20, 2, 4)
    with jax.enable_x64():
        exact = Field(
            field._module,
            jax.tree.map(lambda x: np.asarray(x, np.float64), field._params),
            SHAPE, AFFINE, FRAMES, units, True,
        )  # fmt: skip
        for axis, size in enumerate(sizes):
            step = size * np.eye(4)[axis]
            difference = (exact(coords + step) - exact(coords - step)) / (2 * size)
            scale = np.abs(gradient[..., axis]).max()
            close = np.abs(gradient[..., axis] - difference) < 0.02 * scale
            assert close.mean() > 0.9  # a ReLU may bend in between


def test_diner_is_linear_between_its_entries_if_asked_and_silent_if_not():
    field, between = make_field("diner"), make_field("diner", interpolate=True)
    coords = np.array([[0.1, 0.2, 0.3, 0.4]])
    for ask in (field, field.gradient):
        with pytest.raises(ValueError, match="one entry per voxel and frame, and nothing between"):
            ask(coords)
    # The output layer alone is linear in the entries: the middle of two voxels is their mean.
    module = create_field({"name": "diner", "width": 1, "depth": 0}, 1, int(np.prod(SHAPE)))
    params = init_params(module, jax.random.key(0), axes=4)
    linear = Field(module, params, SHAPE, AFFINE, FRAMES, interpolate=True)
    ends = np.array([[-1, -1, -1, -1], [-1 + 2 / 8, -1, -1, -1]])
    for beyond in ([3.0, -1, -1, -1], [-1, -1, -1, 1 + 2 / 3], [np.nan, 0, 0, 0]):
        for ask in (field, between):
            with pytest.raises(ValueError, match="off the grid"):
                ask(np.array([beyond]))
    near = np.array([[-1 + 2 / 8 + 1e-4, -1, -1, -1]])
    np.testing.assert_array_equal(field(near), field(ends[1:]))
    assert linear(ends.mean(axis=0)[None]) == pytest.approx(linear(ends).mean(), rel=1e-4)
    assert between(np.array([[1.0, 1.0, 1.0, 1.0]])) == pytest.approx(
        field.at_voxels(np.array([np.prod(SHAPE) - 1])), abs=1e-5
    )


def test_wrong_questions_are_refused():
    field = make_field("siren")
    with pytest.raises(ValueError, match=r"expected shape \(points, 4\), got \(2, 3\)"):
        field(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="off the grid"):
        field.at_voxels(np.array([np.prod(SHAPE)]))
    with pytest.raises(ValueError, match="expected integers"):
        field.at_voxels(np.array([0.5]))
    few = field.at_voxels(np.arange(3))
    for kind in ("i2", "u1", "u2", "u4", "u8"):
        np.testing.assert_array_equal(field.at_voxels(np.arange(3, dtype=kind)), few)
    with pytest.raises(ValueError, match="units must be one of grid, mm, got 'cm'"):
        make_field("siren", units="cm")


@pytest.mark.parametrize("affine", [AFFINE, RIGID])
def test_a_resampled_grid_stays_within_the_scan(affine):
    own = nib.affines.voxel_sizes(affine)
    for spacing in ([*own], [*own / 2], [1.0, 1.0, 2.0], [30.0, 1.0, 1.0], [*own * 1.7]):
        axes, new = nifti.resampled((9, 8, 3), affine, [*own], spacing)
        np.testing.assert_allclose(nib.affines.voxel_sizes(new), spacing)
        # The same place by the new affine as by the coordinates.
        for voxel in ([0, 0, 0], [len(a) - 1 for a in axes]):
            place = [
                (a[i] + 1) / 2 * (n - 1) for a, i, n in zip(axes, voxel, (9, 8, 3), strict=True)
            ]
            np.testing.assert_allclose(
                nib.affines.apply_affine(new, voxel), nib.affines.apply_affine(affine, place)
            )
        assert all(-1 <= a[0] <= a[-1] <= 1 + 1e-6 for a in axes)
        if spacing == [*own]:
            assert [len(a) for a in axes] == [9, 8, 3]
    for wrong in ([1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, np.inf]):
        with pytest.raises(ValueError, match="spacing must be three positive numbers"):
            nifti.resampled((9, 8, 3), affine, [*own], wrong)


@pytest.mark.parametrize("affine", [AFFINE, RIGID])
def test_a_file_has_the_affine_of_the_scan(affine, tmp_path):
    volume = np.random.default_rng(0).uniform(size=(9, 8, 3, 5)).astype("f4")
    voxel = [*map(float, nib.affines.voxel_sizes(affine)), 0.25]
    path = nifti.write(tmp_path / "v.nii.gz", volume, affine, voxel)
    image = nib.load(path)
    np.testing.assert_array_equal(image.get_fdata(), volume)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms()[3], 0.25)
    assert image.header["sform_code"] == 2
    # A qform cannot hold a shear: it must not contradict the sform.
    assert image.header["qform_code"] == (0 if affine is AFFINE else 2)
    if affine is RIGID:
        np.testing.assert_allclose(image.get_qform(), affine, atol=1e-4)
        other = SimpleITK.ReadImage(str(path))
        assert other.GetSize() == (9, 8, 3, 5)
        np.testing.assert_allclose(SimpleITK.GetArrayFromImage(other).T, volume)
        for voxel in ([0, 0, 0, 0], [8, 0, 2, 0], [0, 7, 1, 0]):
            place = np.array(other.TransformIndexToPhysicalPoint(voxel)[:3]) * [-1, -1, 1]
            expected = nib.affines.apply_affine(affine, voxel[:3])
            np.testing.assert_allclose(place, expected, atol=1e-3)


def test_a_file_lies_over_a_scan_whose_header_contradicts_itself(tmp_path):
    """As ACDC's frames: 1 mm in the sform, the true voxel size in pixdim, which ITK takes."""
    voxel = [1.5, 1.5, 10.0]
    volume = np.zeros((9, 8, 3), "f4")
    source = nib.Nifti1Image(volume, np.eye(4))
    source.header.set_zooms(voxel)
    nib.save(source, tmp_path / "source.nii")
    nifti.write(tmp_path / "field.nii", volume, np.eye(4), voxel)
    files = [tmp_path / "source.nii", tmp_path / "field.nii"]
    assert (nib.load(files[0]).affine == nib.load(files[1]).affine).all()
    a, b = (SimpleITK.ReadImage(str(path)) for path in files)
    assert a.GetSpacing() == b.GetSpacing() == (1.5, 1.5, 10.0)
    assert a.GetDirection() == b.GetDirection() and a.GetOrigin() == b.GetOrigin()
    np.testing.assert_array_equal(nifti.scanner_affine(np.eye(4), voxel), np.diag([*voxel, 1]))


@pytest.mark.parametrize("name", ["siren", "diner"])
def test_at_the_original_grid_a_file_scores_what_the_run_scored(runs, phantom_root, tmp_path, name):
    workdir = runs("domain_expansion", name, "distillation")
    run = nfcl_jax.open_run(workdir)
    scan = read_scans(phantom_root, "domain_expansion", ["patient001"])[0]
    source = nib.load(phantom_root / "patient001/patient001_4d.nii.gz")
    for task in (2, 4):
        image = nib.load(run.to_nifti("patient001", task, tmp_path / "p.nii.gz"))
        assert image.shape == (*source.shape[:3], task)
        np.testing.assert_allclose(image.affine, source.affine, atol=1e-6)
        np.testing.assert_allclose(image.header.get_zooms()[:3], source.header.get_zooms()[:3])
        for frame in range(task):
            error = np.mean((image.get_fdata()[..., frame] - scan.intensities[frame]) ** 2)
            expected = value(read_csv(workdir / "metrics.csv"), "psnr", task, frame + 1)
            assert -10 * np.log10(error) == pytest.approx(expected, abs=1e-3)


def test_files_of_other_grids_times_and_outputs(runs, phantom_root, tmp_path):
    run = nfcl_jax.open_run(runs("domain_expansion", "siren", "distillation"))
    frames = nib.load(run.to_nifti("patient001", 4, tmp_path / "a.nii"))
    many = nib.load(
        run.to_nifti("patient001", 4, tmp_path / "b.nii", spacing=(1.9, 1.9, 5), times=7)
    )
    assert many.shape == (72, 64, 11, 7)
    # Every second of the seven time points is a frame; every second slice one of the scan's.
    np.testing.assert_allclose(many.get_fdata()[:, :, ::2, ::2], frames.get_fdata(), atol=1e-4)
    # Frames 1, 6, 11 and 16 of 16.
    np.testing.assert_allclose(frames.header.get_zooms()[3], 5 / 16)
    np.testing.assert_allclose(many.header.get_zooms()[3], 2.5 / 16)

    one = nib.load(run.to_nifti("patient001", 1, tmp_path / "c.nii"))
    assert one.shape == (72, 64, 6, 1) and one.header.get_zooms()[3] == 5 / 16
    with pytest.raises(ValueError, match="one frame was learned by then"):
        run.to_nifti("patient001", 1, tmp_path / "c.nii", times=10)
    for task in (0, -1, 5):
        with pytest.raises(KeyError, match=f"no checkpoint of task {task}"):
            run.to_nifti("patient001", task, tmp_path / "c.nii")

    workdir = runs("signal_expansion", "siren", "distillation")
    run = nfcl_jax.open_run(workdir)
    where = {"patient": "patient001", "image": "ED", "path": tmp_path / "m.nii.gz"}
    mask = nib.load(run.to_nifti(task=2, output="mask", **where)).get_fdata()
    scans = {scan.name: scan for scan in read_scans(phantom_root, "signal_expansion")}
    truth = scans["patient001/ED"].labels[0]
    for label, metric in enumerate(("dsc_rv", "dsc_myo", "dsc_lv"), start=1):
        both = 2 * ((mask == label) & (truth == label)).sum()
        dice = both / ((mask == label).sum() + (truth == label).sum())
        (expected,) = [
            float(row["value"])
            for row in read_csv(workdir / "metrics.csv")
            if (row["image"], row["metric"]) == ("ED", metric)
        ]
        assert dice == pytest.approx(expected, abs=2e-3)
    chances = nib.load(run.to_nifti(task=2, output="probabilities", **where)).get_fdata()
    assert chances.shape == (*mask.shape, 4)
    np.testing.assert_allclose(chances.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(chances.argmax(axis=-1), mask)
    with pytest.raises(ValueError, match="output must be one of image after task 1, got 'mask'"):
        run.to_nifti(task=1, output="mask", **where)
    with pytest.raises(ValueError, match="times must be at least 1, and the scan a cine"):
        run.to_nifti(task=2, times=3, **where)
    with pytest.raises(ValueError, match=r"must end in \.nii or \.nii\.gz"):
        run.to_nifti("patient001", 2, tmp_path / "m.mha", "ED")
    with pytest.raises(KeyError, match="say which image"):
        run.to_nifti("patient001", 2, tmp_path / "m.nii")
    with pytest.raises(KeyError, match="not in this run"):
        run.field("patient009", task=2, image="ED")
    with pytest.raises(KeyError, match="no checkpoint of task 3"):
        run.field("patient001", task=3, image="ED")


def test_the_command_writes_the_file_or_says_why_not(runs, tmp_path):
    workdir = runs("domain_expansion", "diner", "distillation")
    start = f"python -m experiments.export --run={workdir} --patient=patient001 --task=4"
    done = command(f"{start} --out=p.nii.gz --times=9", tmp_path)
    assert done.returncode == 2 and "nothing between them" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "p.nii.gz").exists()
    done = command(f"{start} --out=p.nii.gz --spacing=4,4,10 --interpolate", tmp_path)
    assert done.returncode == 0, done.stderr
    assert nib.load(tmp_path / "p.nii.gz").shape == (34, 30, 6, 4)


def test_a_run_tells_what_it_is(runs):
    run = nfcl_jax.open_run(runs("signal_expansion", "siren", "distillation"))
    assert run.tasks == (1, 2)
    words = "signal_expansion, siren, distillation of weight 10, seed 0, 150 steps of 1024 points"
    assert words in repr(run) and words in run._repr_html_()
    table = run.table()
    assert list(table["scan"]) == ["patient001/ED", "patient001/ES"]
    scores = read_csv(run.workdir / "metrics.csv")
    first, last = (
        float(row["value"])
        for row in scores
        if (row["image"], row["evaluated_task"], row["metric"]) == ("ED", "1", "psnr")
    )
    assert table["image"].iloc[0] == f"{first:.1f} → {last:.1f}"


def test_fewer_bits_take_less_and_keep_less(runs):
    run = nfcl_jax.open_run(runs("domain_expansion", "siren", "distillation"))
    table = run.size("patient001", task=4).set_index("weights")
    weights = sum(leaf.size for leaf in jax.tree.leaves(run.params("patient001", 4)))
    assert table.bytes["float32"] == 4 * weights and table.bytes["bfloat16"] == 2 * weights
    assert weights < table.bytes["int8"] < 1.2 * weights
    expected = run.scores.query("trained_task == 4 and metric == 'psnr'").value.mean()
    assert table.psnr["float32"] == pytest.approx(expected, abs=1e-3)
    assert table.psnr["bfloat16"] > expected - 1
    params = {"layer": np.random.default_rng(0).normal(size=(50, 7)).astype("f4")}
    for storage, most in (("float32", 0), ("bfloat16", 2.0**-8), ("int8", 1 / 254)):
        back = sizes.stored(params, storage)[1]["layer"]
        reach = np.abs(params["layer"]).max(axis=0) * most
        assert (np.abs(back - params["layer"]) <= reach * 1.001).all()


def test_words_of_somebody_elses_run_are_neither_paths_nor_html(runs, tmp_path):
    shutil.copytree(runs("signal_expansion", "siren", "finetune"), tmp_path / "run")
    scans = json.loads((tmp_path / "run/patients.json").read_text())
    for name in ("../../elsewhere", "/etc/passwd", ".hidden", "..", "a\\b"):
        scans[0]["patient"] = name
        (tmp_path / "run/patients.json").write_text(json.dumps(scans))
        with pytest.raises(ValueError, match="is no name of a patient"):
            nfcl_jax.open_run(tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text()) | {"seed": "<script>"}
    scans[0]["patient"] = "<script>alert(1)<script>"
    (tmp_path / "run/patients.json").write_text(json.dumps(scans))
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    assert "<script" not in nfcl_jax.open_run(tmp_path / "run")._repr_html_()


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: missing"):
        nfcl_jax.open_run(tmp_path)
    shutil.copytree(STORED, tmp_path / "cells/siren")
    with pytest.raises(FileNotFoundError, match=r"cells/siren would be one\."):
        nfcl_jax.open_run(tmp_path)


STORED = Path(__file__).parent / "data/run_format_1"


def test_a_run_of_format_1_keeps_opening():
    """A small run, kept as it was written, and what its field answered then."""
    run = nfcl_jax.open_run(STORED)
    assert run.tasks == (1, 4) and "2 scans" in repr(run)
    expected = json.loads((STORED / "expected.json").read_text())
    for task, values in expected["patient002"].items():
        answers = run.field("patient002", int(task))(np.array(expected["coords"]))
        np.testing.assert_allclose(answers[:, 0], values, atol=1e-5)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    shutil.copytree(STORED, tmp_path / "run")
    path = tmp_path / "run/checkpoints/task_4/_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    run = nfcl_jax.open_run(tmp_path / "run")
    assert run.params("patient001", 1)
    with pytest.raises(CheckpointError, match="task_4: format 2 instead of 1"):
        run.params("patient001", 4)
