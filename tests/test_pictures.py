"""Pictures, single slices and arrays: fields of two coordinates, and colours as channels."""

import struct
import zlib

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
import skimage.io
import tifffile
from PIL import Image
from test_sequence import HEADER
from test_table_run import same

from nfcl_jax import table_run
from nfcl_jax.checkpoints import load_all
from nfcl_jax.config import make_config
from nfcl_jax.data.sequence import Reading, read_cases
from nfcl_jax.data.sources import in_memory, read, volume_of_picture
from nfcl_jax.errors import DataError
from nfcl_jax.geometry import Grid
from nfcl_jax.metrics import ssim
from nfcl_jax.points import PixelGrid, Points, VoxelGrid, index_to_coords, sample_coords
from nfcl_jax.runner import Caller, run
from nfcl_jax.runs import open_run

WIDTH, HEIGHT = 16, 12
RED = np.linspace(0, 250, WIDTH).astype(np.uint8)[None, :] * np.ones((HEIGHT, 1), np.uint8)
GREEN = (np.arange(HEIGHT) * 20).astype(np.uint8)[:, None] * np.ones((1, WIDTH), np.uint8)
COLOURS = np.stack([RED, GREEN, 255 - RED], -1)  # as pictures have it: rows, columns, colours


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "colour.png")
    Image.fromarray(GREEN).save(tmp_path / "grey.png")
    Image.fromarray((RED > 100).astype(np.uint8) * 255).save(tmp_path / "mask.png")
    slice_ = nib.Nifti1Image(RED.T.astype("f4"), np.diag([2, 2, 5, 1]))
    nib.save(slice_, tmp_path / "slice.nii.gz")
    return tmp_path


def cases(folder, rows, **reading):
    (folder / "scans.csv").write_text(HEADER + rows)
    return read_cases(folder / "scans.csv", Reading(**reading))


def test_colours_of_16_bits_are_not_cut_to_8(folder):
    wide = COLOURS.astype(">u2") * 16
    rows = b"".join(b"\0" + row.tobytes() for row in wide)  # no row is filtered
    size = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (folder / "wide.png").write_bytes(png)
    skimage.io.imsave(folder / "wide.tif", wide.astype("u2"), check_contrast=False)
    planes = np.moveaxis(wide, -1, 0).astype("u2")  # which tifffile keeps apart
    tifffile.imwrite(folder / "planes.tif", planes, photometric="rgb")
    for name in ("wide.png", "wide.tif", "planes.tif"):
        _, faults = cases(folder, f"p,1,{name},,,,\n")
        assert "several values of 16 bits; values of 8 bits, or one of 16," in faults["p"][0]
        with (
            Image.open(folder / name) as picture,
            pytest.raises(DataError, match="several values of 16 bits"),
        ):
            in_memory(picture, "the image")
    grey = Image.fromarray(wide[..., 0].astype("u2"))
    assert in_memory(grey, "the image").volume.range == (0, 65535)


def test_a_picture_has_two_coordinates_x_to_the_right_and_y_downwards(folder):
    (case,), faults = cases(folder, "p,1,colour.png,,,,\np,2,,mask.png,,,\n")
    assert not faults and case.scan.shape == (WIDTH, HEIGHT, 1)
    np.testing.assert_allclose(
        case.scan.values["image"][0, :, :, 0], np.swapaxes(COLOURS, 0, 1) / 255, atol=1e-6
    )
    image, mask = (task.head for task in case.tasks)
    assert image.channels == slice(0, 3) and mask.channels == slice(3, 5)
    assert mask.labels == (0, 255)
    assert case.scan.source["rows"][0]["image"]["range"] == (0, 255)


def test_a_single_slice_is_scaled_as_volumes_are(folder):
    (case,), faults = cases(folder, "p,1,slice.nii.gz,,,,\n")
    assert not faults and case.scan.shape == (WIDTH, HEIGHT, 1)
    assert case.scan.spacing == (2, 2, 1) or case.scan.spacing == (2, 2, 5)
    np.testing.assert_allclose(case.scan.values["image"][0, :, :, 0], RED.T / 250, atol=1e-6)


FAULTS = {
    "transparent": ("transparent.png", "has transparent pixels; none would be right"),
    "four inks": ("inks.jpg", "its colours are CMYK; RGB or grey would be right"),
    "two pictures": ("two.tif", "holds 2 pictures; a file for each would be right"),
    "no picture": ("none.png", "not a readable picture"),
    "too small": ("small.png", "smaller than the 7 x 7 window"),
    "a frame": ("grey.png#1", "a picture has no frames"),
    "not there": ("nowhere.png", "missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_picture_that_cannot_be_used_is_refused(folder, fault):
    name, message = FAULTS[fault]
    clear = np.concatenate([COLOURS, RED[..., None]], -1)
    Image.fromarray(clear).save(folder / "transparent.png")
    Image.fromarray(COLOURS).convert("CMYK").save(folder / "inks.jpg")
    pages = [Image.fromarray(GREEN), Image.fromarray(RED)]
    pages[0].save(folder / "two.tif", save_all=True, append_images=pages[1:])
    (folder / "none.png").write_bytes(b"no picture")
    Image.fromarray(GREEN[:5]).save(folder / "small.png")
    found, faults = cases(folder, f"p,1,{name},,,,\n")
    assert not found and message in faults["p"][0] and "line 2" in faults["p"][0]


def test_one_name_is_grey_or_in_colour(folder):
    _, faults = cases(folder, "p,1,grey.png,,0,,\np,2,colour.png,,1,,\n", time_range=(0, 1))
    assert "line 3" in faults["p"][0] and "in colour, which the first image is not" in str(faults)
    _, faults = cases(folder, "p,1,grey.png,colour.png,,,\n")
    assert "a mask in colour" in faults["p"][0]
    Image.fromarray(GREEN).save(folder / "labels.jpg")
    _, faults = cases(folder, "p,1,grey.png,labels.jpg,,,\n")
    assert "JPEG changes values, and with them labels; PNG would be right" in faults["p"][0]


def test_pictures_are_read_as_they_look(folder, tmp_path):
    palette = Image.fromarray(COLOURS).quantize(200)
    np.testing.assert_allclose(
        volume_of_picture(palette, "p").data,
        volume_of_picture(palette.convert("RGB"), "p").data,
    )
    classes = Image.fromarray((RED > 100).astype(np.uint8), "P")
    classes.putpalette([0, 0, 0, 9, 9, 9])
    assert volume_of_picture(classes, "p").data.shape == (WIDTH, HEIGHT, 1)
    classes.putpalette([0, 0, 0, 128, 0, 0])  # labels are its places
    np.testing.assert_array_equal(
        volume_of_picture(classes, "p", is_mask=True).data[..., 0], (RED > 100).T
    )
    deep = Image.fromarray(GREEN.astype(np.uint16) * 200)
    assert volume_of_picture(deep, "p").range == (0, 65535)
    opaque = Image.fromarray(COLOURS).convert("RGBA")
    np.testing.assert_array_equal(
        volume_of_picture(opaque, "p").data, read(folder / "colour.png", 3).data
    )
    turned = Image.fromarray(COLOURS)
    turned.getexif()[0x0112] = 6  # a camera on its side
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    assert read(tmp_path / "turned.jpg", 3).data.shape == (HEIGHT, WIDTH, 1, 3)


def test_an_array_with_three_slices_or_colours_is_not_guessed_at():
    array = np.swapaxes(COLOURS, 0, 1)
    with pytest.raises(DataError, match="may be a colour image or a volume of 3 slices"):
        in_memory(array, "the image")
    assert in_memory(array, "the image", colour=True).volume.range == (0, 255)
    assert in_memory(array, "the image", colour=False).volume.data.shape == (WIDTH, HEIGHT, 3)
    for bad in (array.astype(complex), array[..., 0, 0], np.full((9, 9), np.nan)):
        with pytest.raises(DataError, match="the image: "):
            in_memory(bad, "the image")
    image = nib.Nifti1Image(RED.T.astype("f4"), np.diag([2, 2, 5, 1]))
    assert in_memory(image, "the image").volume.data.shape == (WIDTH, HEIGHT, 1)


def test_the_coordinates_of_a_slice_are_those_of_a_volume_without_z():
    shape, times = jnp.array([2, 6, 5, 1]), jnp.array([-1, 0.5])
    index = jnp.arange(60)
    volume = index_to_coords(index, VoxelGrid(shape, times))
    np.testing.assert_array_equal(
        index_to_coords(index, PixelGrid(shape, times)), volume[:, [0, 1, 3]]
    )


def test_ssim_in_colour_is_the_mean_of_the_colours():
    a, b = np.random.default_rng(0).random((2, 9, 9, 1, 3))
    assert ssim(a, b) == pytest.approx(np.mean([ssim(a[..., c], b[..., c]) for c in range(3)]))


@pytest.mark.parametrize("field", ["siren", pytest.param("diner", marks=pytest.mark.slow)])
def test_a_field_of_a_picture_is_asked_and_exported(folder, tmp_path, field):
    (folder / "scans.csv").write_text(
        HEADER + "p,1,colour.png,,0,,\np,2,grey.png,,0,grey,\np,3,colour.png,mask.png,9,,\n"
    )
    config = make_config("sequence", field, "distillation") | {"num_steps": 60}
    config |= {"batch_size": 64} if field == "siren" else {}
    config["field"] |= {"width": 16, "depth": 2}
    config["data"] |= {"table": str(folder / "scans.csv"), "time_range": "0,18"}
    (own,) = table_run.plan(config, table_run.read_data(config, tmp_path / "r"), tmp_path / "r")
    run(own.config, [own.scan], own.workdir, Caller())
    opened = open_run(own.workdir)
    grid, mm = (opened.field(units=units) for units in ("grid", "mm"))
    assert grid.channels == 6 and "(x, y, t)" in repr(grid)
    pixel, index = np.array([3, 5]), np.ravel_multi_index((1, 3, 5, 0), (2, WIDTH, HEIGHT, 1))
    at = np.append(2 * pixel / (np.array([WIDTH, HEIGHT]) - 1) - 1, 0.0)[None]
    expected = grid.at_voxels(np.array([index]))
    np.testing.assert_allclose(grid(at), expected, atol=1e-5)
    there = np.array([[3.0, 5.0, 0.0, 9.0]])
    np.testing.assert_allclose(mm(there), expected, atol=1e-5)
    np.testing.assert_allclose(mm.to_mm(at), there, atol=1e-6)
    path = opened.to_nifti("p", 3, tmp_path / "out.nii.gz")
    written = nib.load(path)
    assert written.shape == (WIDTH, HEIGHT, 1, 2, 3)
    assert written.header["pixdim"][4] == 9 and written.header["toffset"] == 0
    with pytest.raises(ValueError, match="one time was learned by then: there are none in between"):
        opened.to_nifti("p", 2, path, times=5)
    assert nib.load(opened.to_nifti("p", 1, path)).shape == (WIDTH, HEIGHT, 1, 1, 3)
    assert nib.load(opened.to_nifti("p", 3, path, output="mask")).shape == (WIDTH, HEIGHT, 1, 2)
    if field == "siren":
        assert grid.gradient(at).shape == (1, 6, 3) and mm.gradient(there).shape == (1, 6, 4)
        kernel = load_all(own.workdir, 1)["p/scan"].params["params"]["hidden_0"]["kernel"]
        assert kernel.shape == (3, 16)  # x, y and the time


def test_the_time_scale_of_a_picture_is_of_the_time(folder, tmp_path):
    """As it would be of a volume: y is not scaled."""
    found = []
    for scale in (0.5, 1.0):
        config = make_config("sequence", "siren", "finetune") | {"num_steps": 2, "batch_size": 8}
        config["field"] |= {"width": 8, "depth": 1, "time_scale": scale}
        (folder / "scans.csv").write_text(HEADER + "p,1,grey.png,,0,,\n")
        config["data"] |= {"table": str(folder / "scans.csv"), "time_range": "0,1"}
        workdir = tmp_path / str(scale)
        (own,) = table_run.plan(config, table_run.read_data(config, workdir), workdir)
        run(own.config, [own.scan], own.workdir, Caller())
        found.append(open_run(own.workdir).field())
    one, other = found
    middle = np.array([[0.3, -0.4, 0.0], [0.3, -0.4, 1.0]])
    module = one._module.clone(time_scale=1.0)
    expected = module.apply(one._params, jnp.array(middle * [1, 1, 0.5], jnp.float32))
    np.testing.assert_allclose(one(middle), expected, atol=1e-5)
    assert not same(one._params, other._params)


def test_continuous_points_of_a_slice_stay_in_its_plane():
    grid = PixelGrid(jnp.array([2, 6, 5, 1]))
    points = Points(jnp.arange(60), jnp.ones(60))
    coords = sample_coords(jax.random.key(0), points, grid)
    assert coords.shape == (60, 3)
    np.testing.assert_array_equal(coords[:, 2], index_to_coords(jnp.arange(60), grid)[:, 2])


def test_points_in_mm_of_a_sheared_slice_are_in_its_plane():
    affine = np.array([[2, 0.5, 0, 7], [0, 2, 0.3, 8], [0.1, 0, 3, 9], [0, 0, 0, 1.0]])
    grid = Grid((6, 5, 1), affine, (1,))
    at = np.array([[-1.0, -1.0], [1.0, 1.0]])
    np.testing.assert_allclose(grid.to_mm(at), [affine[:3, 3], (affine @ [5, 4, 0, 1])[:3]])
    np.testing.assert_allclose(grid.from_mm(grid.to_mm(at)), at, atol=1e-12)


@pytest.mark.parametrize("shape", [(WIDTH, HEIGHT, 1, 1, 1), (WIDTH // 2, HEIGHT, 2, 1, 1)])
def test_further_axes_of_one_are_left_out(folder, shape):
    voxels = RED.T.reshape(shape).astype("f4")
    nib.save(nib.Nifti1Image(voxels, np.diag([2, 2, 5, 1])), folder / "long.nii.gz")
    ((case,), faults) = cases(folder, "p,1,long.nii.gz,,,,\n")
    assert not faults and case.scan.shape == shape[:3]
