"""Fitted fields as functions, and NIfTI files that lie over the scans."""

import os

import jax
import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from nfcl_jax import nifti
from nfcl_jax.fields import FIELDS, create_field, init_params
from nfcl_jax.fitted import FittedField
from nfcl_jax.geometry import Grid

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
    grid = Grid(shape, AFFINE, FRAMES[: shape[0]] if len(shape) == 4 else (1,))
    return FittedField(module, params, grid, **rest)


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
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), field._params)
        exact = FittedField(field._module, params, Grid(SHAPE, AFFINE, FRAMES), units, True)
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
    linear = FittedField(module, params, Grid(SHAPE, AFFINE, FRAMES), interpolate=True)
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


def test_a_file_that_cannot_be_written_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    volume = np.ones((2, 2, 2), "f4")
    path = nifti.write(tmp_path / "v.nii.gz", volume, AFFINE, [1.0] * 3)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        nifti.write(path, 2 * volume, AFFINE, [1.0] * 3)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["v.nii.gz"]


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
