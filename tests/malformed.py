"""Ways to damage the files of a patient, and what is then said of it."""

import gzip
import os
import struct

import nibabel as nib
import numpy as np
from test_data import rewrite, spoil

CINE = "patient002_4d.nii.gz"


def info(text):
    return lambda patient: (patient / "Info.cfg").write_text(text)


def change(name, function):
    return lambda patient: rewrite(next(patient.glob(name)), function)


def write(name, contents):
    return lambda patient: next(patient.glob(name)).write_bytes(contents)


def remove(name):
    return lambda patient: next(patient.glob(name)).unlink()


def cut(patient):
    path = patient / CINE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_inside(patient):
    """A gzip file that is whole, of an image that is not."""
    path = patient / CINE
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:5000]))


def header(offset, form, *values):
    """Overwrites values in the header of the cine."""

    def damage(patient):
        path = patient / CINE
        data = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(form, data, offset, *values)
        path.write_bytes(gzip.compress(bytes(data)))

    return damage


DIM, DATATYPE, PIXDIM, OFFSET, SLOPE, UNITS = 40, 70, 76, 108, 112, 123


def pushed(size, claimed=0):
    """Voxels that begin after `size` bytes of zeros, which an extension may claim to be its own."""

    def damage(patient):
        path = patient / CINE
        data = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into("<f", data, OFFSET, 352 + size)
        extension = struct.pack("<4b2i", 1, 0, 0, 0, claimed, 6) if claimed else bytes(4)
        filled = data[:348] + extension + bytes(size - 8 * bool(claimed)) + data[352:]
        path.write_bytes(gzip.compress(bytes(filled)))

    return damage


def link_nowhere(patient):
    (patient / CINE).unlink()
    (patient / CINE).symlink_to("nowhere")


def folder_instead(patient):
    (patient / CINE).unlink()
    (patient / CINE).mkdir()


def colours(patient):
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 4, 16), kind), np.eye(4)), patient / CINE)


def circle(patient):
    (patient / CINE).unlink()
    (patient / CINE).symlink_to(CINE)


def pipe(patient):
    (patient / CINE).unlink()
    os.mkfifo(patient / CINE)


def other_voxels(patient):
    path = next(patient.glob("*_gt.nii.gz"))
    image = nib.load(path)
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    image.header.set_zooms((10.0, 10.0, 10.0))
    nib.save(image, path)


def rename(name, other):
    return lambda patient: (patient / name).rename(patient / other)


def bend(offset):
    """One byte of the compressed file, from its end."""

    def damage(patient):
        data = bytearray((patient / CINE).read_bytes())
        data[offset] ^= 255
        (patient / CINE).write_bytes(data)

    return damage


def append(patient):
    (patient / CINE).write_bytes((patient / CINE).read_bytes() + b"and more")


def affine(matrix):
    def damage(patient):
        image = nib.load(patient / CINE)
        spoilt = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
        spoilt.header.set_sform(np.asarray(matrix, float), code=1)
        nib.save(spoilt, patient / CINE)

    return damage


def placed(change):
    """A mask with another affine; its voxels stay as they are."""

    def damage(patient):
        path = next(patient.glob("*_gt.nii.gz"))
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), change(image.affine)), path)

    return damage


def blank(place):
    def function(cine):
        cine[..., place] = 5
        return cine

    return function


FAULTS = {
    "a link to itself": (circle, f"{CINE}: a link to {CINE}, where there is no file"),
    "a pipe": (pipe, f"{CINE}: missing; what is there is no file"),
    "capitals": (rename(CINE, CINE.upper()), f"{CINE.upper()} is there instead"),
    "not compressed": (rename(CINE, CINE[:-3]), f"{CINE[:-3]} is there instead"),
    "another checksum": (bend(-8), f"{CINE}: not a readable NIfTI file .CRC"),
    "another byte": (bend(-2000), f"{CINE}: not a readable NIfTI"),
    "something after its end": (append, f"{CINE}: not a readable NIfTI"),
    "fewer frames in its header": (header(DIM + 8, "<h", 10), r"says \d+ bytes, there are more"),
    "an affine not a number": (affine(np.diag([np.nan, 1, 1, 1])), "affine must be finite"),
    "a flat affine": (affine(np.diag([1, 1, 0, 1])), "affine must be finite and invertible"),
    "a blank frame": (change(CINE, blank(0)), "every voxel of frame 1 is 5, nothing to fit"),
    "a blank last frame": (change(CINE, blank(-1)), "every voxel of frame 20 is 5"),
    "ED is ES": (info("ED: 1\nES: 01\n"), "ED and ES are both frame 1; two would be right"),
    "zeros without end": (info(f"ED: {'0' * 5000}1\nES: 5\n"), "ED must be a frame number"),
    "frames without end": (info(f"ED: 1\nES: 5\nNbFrame: {'9' * 5000}"), "NbFrame must be a"),
    "frames in words": (info("ED: 1\nES: 5\nNbFrame: twenty"), "NbFrame must be a number"),
    "voxels in metres": (header(PIXDIM + 4, "<3f", 0.0018, 0.0018, 0.01), "to 1000 mm would be"),
    "a mask of other voxels": (other_voxels, r"_gt.nii.gz: voxels of .* mm, its image's"),
    "a mirrored mask": (
        placed(lambda affine: np.diag([-1.0, 1, 1, 1]) @ affine),
        r"_gt.nii.gz: its axes point to R A S, those of patient002_frame\d\d.nii.gz to L A S; a",
    ),
    "a mask of other axes": (
        placed(lambda affine: affine[[1, 0, 2, 3]]),
        "its axes point to P R S",
    ),
    "a mask of one label": (change("*_gt.nii.gz", lambda x: x * 0 + 3), "every voxel is 3; a mask"),
    "no cine": (remove("*_4d.nii.gz"), f"{CINE}: missing"),
    "no image": (remove("*_frame??.nii.gz"), r"frame\d\d.nii.gz: missing"),
    "no mask": (remove("*_gt.nii.gz"), r"_gt.nii.gz: missing"),
    "no Info.cfg": (remove("Info.cfg"), "Info.cfg: missing"),
    "cut short": (cut, f"{CINE}: not a readable NIfTI"),
    "cut short inside": (cut_inside, f"{CINE}: not a readable NIfTI"),
    "empty file": (write(CINE, b""), f"{CINE}: not a readable NIfTI"),
    "text": (write(CINE, b"no image"), f"{CINE}: not a readable NIfTI"),
    "gzipped text": (write(CINE, gzip.compress(b"no image")), f"{CINE}: not a readable NIfTI"),
    "a folder": (folder_instead, f"{CINE}: missing"),
    "a link to nowhere": (link_nowhere, f"{CINE}: a link to nowhere, where there is no file"),
    "not a number": (change(CINE, spoil(np.nan)), f"{CINE}: 20 voxels are not finite"),
    "infinite": (change(CINE, spoil(np.inf)), f"{CINE}: 20 voxels are not finite"),
    "constant": (change(CINE, lambda x: x * 0 + 3), f"{CINE}: every voxel is 3"),
    "voxels far away": (pushed(2**21), "vox_offset is 2097504; voxels that begin within the first"),
    "a long extension": (pushed(2**21, 2**21), "vox_offset is 2097504"),
    "an extension that is cut": (pushed(2**10, 2**30), f"{CINE}: not a readable NIfTI"),
    "no offset": (header(OFFSET, "<f", np.nan), f"{CINE}: not a readable NIfTI"),
    "three frames": (change(CINE, lambda x: x[..., :3]), "4 frames are wanted, the scan has 3"),
    "no frames": (change(CINE, lambda x: x[..., 0]), "expected 4 dimensions"),
    "five dimensions": (change(CINE, lambda x: x[..., None, None]), "expected 4 dimensions"),
    "one slice": (change(CINE, lambda x: x[:, :, :1]), "a single slice"),
    "narrow": (change(CINE, lambda x: x[:5]), "smaller than the 7 x 7 window"),
    "long": (change(CINE, lambda x: np.tile(x[:7], (1, 3, 1, 1))), "times the other"),
    "colours": (colours, f"{CINE}: holds .*; real numbers would be right"),
    "complex": (change(CINE, lambda x: x + 1j), f"{CINE}: holds complex.*; real numbers"),
    "no voxel size": (header(PIXDIM + 4, "<f", 0.0), "voxel size must be positive"),
    "voxel size not a number": (header(PIXDIM + 8, "<f", np.nan), "voxel size must be positive"),
    "flat voxels": (header(PIXDIM + 12, "<f", 500.0), "voxels of .* mm; one side at most 50"),
    "metres": (header(UNITS, "<b", 1 | 8), "lengths are in metres; mm would be right"),
    "micrometres": (header(UNITS, "<b", 3), "lengths are in micrometres; mm would be right"),
    "huge": (header(DIM, "<5h", 4, 30000, 30000, 1000, 30), r"voxels need about \d+\.\d GB"),
    "negative size": (header(DIM, "<5h", 4, -48, 42, 5, 16), CINE),
    "unknown type": (header(DATATYPE, "<h", 999), f"{CINE}: not a readable NIfTI"),
    "infinite slope": (header(SLOPE, "<f", np.inf), "scl_slope must be finite, found inf"),
    "ED missing": (info("ES: 5\n"), "Info.cfg: ED must be a frame number from 1, found none"),
    "ED 0": (info("ED: 0\nES: 5\n"), "ED must be a frame number from 1, found '0'"),
    "ED negative": (info("ED: -1\nES: 5\n"), "ED must be a frame number from 1, found '-1'"),
    "ES a word": (info("ED: 1\nES: five\n"), "ES must be a frame number from 1, found 'five'"),
    "ES beyond": (info("ED: 1\nES: 45\nNbFrame: 16\n"), "ES is frame 45 of 16"),
    "ES elsewhere": (info("ED: 1\nES: 15\nNbFrame: 16\n"), "frame15.nii.gz: missing"),
    "no colon": (info("ED: 1\nES 5\n"), "line 2: expected 'key: value', found 'ES 5'"),
    "empty Info.cfg": (info(""), "Info.cfg: ED must be a frame number"),
    "binary Info.cfg": (info("\x00\x01ED: 1"), "Info.cfg: ED must be"),
    "endless Info.cfg": (info("ED: 1\n" * 50_000), "Info.cfg: 300000 bytes"),
    "a mask of other shape": (change("*_gt.nii.gz", lambda x: x[:-1]), "its image has"),
    "a label 4": (change("*_gt.nii.gz", spoil(4)), "labels must be 0 to 3"),
    "a label 0.5": (change("*_gt.nii.gz", spoil(0.5)), "labels must be 0 to 3"),
    "a label -1": (change("*_gt.nii.gz", spoil(-1)), "labels must be 0 to 3"),
    "an empty mask": (change("*_gt.nii.gz", lambda x: x * 0), "the mask is empty"),
    "a mask not finite": (change("*_gt.nii.gz", spoil(np.nan)), "voxels are not finite"),
}
