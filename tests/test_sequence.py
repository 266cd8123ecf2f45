"""Tables of scans: what fields learn by them, what is added later, and every fault of the files."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from nfcl_jax.data.sequence import Reading, read_cases, time_range_of
from nfcl_jax.errors import ConfigError, DataError

SHAPE, AFFINE = (12, 10, 4), np.diag([1.5, 1.5, 3.0, 1.0])
PLACES = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"), -1)
HEADER = "patient,task,image,mask,time,channel,range\n"
TABLE = """p1,1,t1.nii.gz,,0,T1,
p1,2,t2.nii.gz,,0,T2,
p1,3,later.nii.gz,mask.nii.gz,365,T1,
p2/left,1,cine.nii.gz#3,,10,,
p2/left,1,cine.nii.gz#1,,0,,
"""


def save(path, values, affine=AFFINE):
    nib.save(nib.Nifti1Image(values, affine), path)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("t1", "t2", "later")):
        save(tmp_path / f"{name}.nii.gz", 100 * PLACES[..., number].astype("f4") + 7 * number)
    frames = np.stack([PLACES[..., 0] * k for k in (1, 2, 3)], -1)
    save(tmp_path / "cine.nii.gz", frames.astype("f4"))
    mask = np.zeros(SHAPE, "i2")
    mask[2:6, 2:6, 1:3], mask[8:11, 3:8] = 17, -4
    save(tmp_path / "mask.nii.gz", mask)
    return tmp_path


def write(folder, rows=TABLE):
    path = folder / "scans.csv"
    path.write_text(HEADER + rows)
    return path


def read(folder, rows=TABLE, known=None, **reading):
    reading = Reading(**{"time_range": (0, 730)} | reading)
    return read_cases(write(folder, rows), reading, known or {})


def test_a_case_has_heads_frames_and_times_in_the_order_in_which_they_are_learned(folder):
    (first, second), faults = read(folder)
    assert not faults
    scan, tasks = first
    assert scan.name == "p1/scan" and scan.shape == (2, *SHAPE) and not scan.missing
    np.testing.assert_allclose(scan.times, [-1, 0])
    assert [task.name for task in tasks] == ["T1 at 0", "T2 at 0", "T1 and mask at 365"]
    heads = {lesson.head.name: lesson.head for task in tasks for lesson in task.lessons}
    assert [head.channels for head in heads.values()] == [slice(0, 1), slice(1, 2), slice(2, 5)]
    assert heads["mask"].labels == (-4, 0, 17)
    assert [(own.head.name, own.frames) for own in tasks[2].lessons] == [
        ("T1", (1,)),
        ("mask", (1,)),
    ]
    np.testing.assert_allclose(scan.values["T1"][0], (PLACES[..., 0] + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(scan.values["T1"][1], (PLACES[..., 2] + 1) / 2, atol=1e-6)
    assert not scan.values["T2"][1].any()  # which nobody learns
    mask = np.asarray(nib.load(folder / "mask.nii.gz").dataobj)
    np.testing.assert_array_equal(np.array([-4, 0, 17])[scan.values["mask"][1]], mask)
    # Frames of a file are scaled by the whole of it, and numbered as the rows come.
    assert second.scan.name == "p2/left" and second.tasks[0].name == "image at 10, 0"
    np.testing.assert_allclose(second.scan.values["image"][0], (PLACES[..., 0] + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(np.ptp(second.scan.values["image"][1]), 1 / 3, atol=1e-6)


def test_a_range_of_its_own_is_what_0_and_1_stand_for(folder):
    (case,), _ = read(folder, "p1,1,t1.nii.gz,,,,-50:150\n")
    expected = np.clip((100 * PLACES[..., 0] + 50) / 200, 0, 1)
    np.testing.assert_allclose(case.scan.values["image"][0], expected, atol=1e-6)
    assert case.scan.shape == SHAPE and case.scan.times is None
    assert case.scan.source["rows"][0]["image"]["range"] == (-50, 150)


def test_an_image_on_another_grid_is_refused_or_resampled(folder):
    finer = np.diag([0.75, 0.75, 3.0, 1.0])
    fine = np.linspace(-1, 1 + 1 / 11, 24)[:, None, None] * np.ones((24, 20, 4))
    save(folder / "fine.nii.gz", fine.astype("f4"), finer)
    rows = "p1,1,t1.nii.gz,,,A,\np1,2,fine.nii.gz,,,B,\n"
    _, faults = read(folder, rows)
    (fault,) = faults["p1"]
    assert "line 3" in fault and "shape 24 x 20 x 4, affine [[0.75" in fault
    assert "t1.nii.gz has shape 12 x 10 x 4, affine [[1.5" in fault
    (case,), _ = read(folder, rows, resample=True)
    found, expected = (x[:, 5, 2] for x in (case.scan.values["B"][0], fine[::2, ::2]))
    np.testing.assert_allclose(found, (expected + 1) / np.ptp(fine), atol=1e-5)


def unplaced(path, values):
    image = nib.Nifti1Image(values, None)
    image.header.set_zooms(np.diag(AFFINE)[:3])
    nib.save(image, path)


def test_what_has_no_place_in_the_scanner_is_not_resampled(folder):
    """Neither on a grid, nor another on its own."""
    unplaced(folder / "nowhere.nii.gz", PLACES[..., :3, 0].astype("f4"))
    rows = ["p1,1,t1.nii.gz,,,A,\np1,2,nowhere.nii.gz,,,B,\n"]
    rows.append("p1,1,nowhere.nii.gz,,,B,\np1,2,t1.nii.gz,,,A,\n")
    for own in rows:
        _, faults = read(folder, own, resample=True)
        (fault,) = faults["p1"]
        assert "nowhere.nii.gz has none; a header with an affine would be right" in fault


def test_images_are_compared_with_each_other_where_the_first_has_no_place(folder):
    unplaced(folder / "nowhere.nii.gz", PLACES[..., 0].astype("f4"))
    nib.save(nib.load(folder / "t2.nii.gz").slicer[::-1], folder / "flipped.nii.gz")
    rows = "p1,1,nowhere.nii.gz,,,A,\np1,2,t1.nii.gz,,,B,\np1,3,{},,,C,\n"
    assert not read(folder, rows.format("later.nii.gz")).faults
    (fault,) = read(folder, rows.format("flipped.nii.gz")).faults["p1"]
    assert "line 4: " in fault and "t1.nii.gz has shape" in fault


def test_labels_are_whole_but_for_rounding(folder):
    """As of a file that stores them scaled."""
    mask = np.asarray(nib.load(folder / "mask.nii.gz").dataobj)
    save(folder / "scaled.nii.gz", (mask / 17).astype("f4") * np.float32(17) + np.float32(1e-6))
    (case,), _ = read(folder, "p1,1,t1.nii.gz,scaled.nii.gz,,,\n")
    (lesson,) = (own for own in case.tasks[0].lessons if own.head.kind == "mask")
    assert lesson.head.labels == (-4, 0, 17)
    save(folder / "half.nii.gz", np.where(mask > 0, 0.9990234375, 0.0))
    (fault,) = read(folder, "p1,1,t1.nii.gz,half.nii.gz,,,\n").faults["p1"]
    assert "labels must be whole numbers, found 0.999023438." in fault


def test_a_scale_of_its_own_is_taken_if_it_is_stated(folder):
    save(folder / "large.nii.gz", (4000 * PLACES[..., 1]).astype("f4"))
    rows = "p1,1,t1.nii.gz,,0,,-100:100\np1,2,large.nii.gz,,9,,{}\n"
    assert "a range (intensity_range) of its own" in read(folder, rows.format("")).faults["p1"][0]
    (case,), _ = read(folder, rows.format("-4000:4000"))
    np.testing.assert_allclose(case.scan.values["image"][1], (PLACES[..., 1] + 1) / 2, atol=1e-6)


def test_what_no_nifti_file_is_may_be_one_of_other_kinds(folder):
    nib.save(nib.Nifti1Pair(PLACES[..., 0].astype("f4"), AFFINE), folder / "pair.img")
    shutil.copy(folder / "t1.nii.gz", folder / "T1.NII.GZ")
    (folder / "t1.mgz").write_bytes(b"another format")
    for name, message in (
        ("pair.hdr", "a pair of .hdr and .img; one file .nii or .nii.gz would be right"),
        ("t1.mgz", "no NIfTI header; a file .nii or .nii.gz, as dcm2niix writes, would be right"),
    ):
        (fault,) = read(folder, f"p1,1,{name},,,,\n").faults["p1"]
        assert message in fault
    assert not read(folder, "p1,1,T1.NII.GZ,,,,\n").faults


def test_a_mask_is_background_beyond_its_file_or_refused(folder):
    labels = np.full((12, 10, 2), 41, "i2")
    labels[3] = 1000
    save(folder / "part.nii.gz", labels)
    rows = "p1,1,t1.nii.gz,,,A,\np1,2,,part.nii.gz,,B,\n"
    (fault,) = read(folder, rows, resample=True).faults["p1"]
    assert "part.nii.gz: does not cover the grid of" in fault and "has no label 0" in fault
    labels[5] = 0
    save(folder / "part.nii.gz", labels)
    ((case,), _) = read(folder, rows, resample=True)
    found = np.array([0, 41, 1000])[case.scan.values["B"][0]]
    np.testing.assert_array_equal(found[..., :2], labels)
    assert not found[..., 2:].any()


def test_what_resampling_fills_is_told(folder, caplog):
    save(folder / "part.nii.gz", PLACES[..., :2, 0].astype("f4"))
    rows = "p1,1,t1.nii.gz,,,A,\np1,2,part.nii.gz,,,B,\n"
    assert not read(folder, rows, resample=True).faults
    assert "part.nii.gz: covers 50% of the grid of" in caplog.text


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_covers_all_of_its_voxels(folder, turned):
    """Also the outer halves of the outermost, on a finer grid or a rotated one."""
    coarse, fine = (np.diag([size, size, 3.0, 1.0]) for size in (1.5, 0.75))
    fine[:2, 3] = -0.375  # the same field of view
    if turned:
        angle = np.deg2rad(33)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        coarse, fine = turn @ coarse, turn @ fine
    labels = np.random.default_rng(0).integers(1, 5, SHAPE).astype("i2")
    finer = labels.repeat(2, 0).repeat(2, 1)
    save(folder / "coarse.nii.gz", labels, coarse)
    save(folder / "fine.nii.gz", finer.astype("f4"), fine)
    rows = "p1,1,fine.nii.gz,,,A,\np1,2,,coarse.nii.gz,,B,\n"
    ((case,), faults) = read(folder, rows, resample=True)
    assert not faults
    np.testing.assert_array_equal(case.scan.values["B"][0] + 1, finer)


def test_times_that_float32_does_not_tell_apart_are_a_fault(folder):
    rows = "p1,1,t1.nii.gz,,0,A,\np1,2,t2.nii.gz,,10,A,\n"
    (fault,) = read(folder, rows, time_range=(0, 1e9)).faults["p1"]
    assert "times are too close together for a field" in fault


FAULTS = {
    "frames of a file": (
        "t2.nii.gz",
        "cine.nii.gz#1-3",
        "cine.nii.gz#1-3: missing; cine.nii.gz is there, of which #1 would be one frame.",
    ),
    "a missing file": ("t2.nii.gz", "no.nii.gz", "line 3: {folder}/no.nii.gz: missing"),
    "a frame too many": ("#3", "#4", "line 5: {folder}/cine.nii.gz: has 3 frames, frame 4"),
    "a whole cine": (
        "cine.nii.gz#3",
        "cine.nii.gz",
        "line 5: {folder}/cine.nii.gz: expected 3",
    ),
    "a frame of a volume": (
        "t2.nii.gz",
        "t2.nii.gz#1",
        "found shape (12, 10, 4). The file without #1 would be right.",
    ),
    "a time too late": ("365", "731", "line 4: time 731 is beyond the time_range 0,730"),
    "labels that are no labels": ("mask.nii.gz", "t1.nii.gz", "labels must be whole numbers"),
    "no image": ("t2.nii.gz", "flat.nii.gz", "line 3: {folder}/flat.nii.gz: every voxel is 5"),
    "no mask": ("mask.nii.gz", "flat.nii.gz", "line 4: {folder}/flat.nii.gz: every voxel is 5"),
    "another scale": ("later.nii.gz", "large.nii.gz", "line 4: {folder}/large.nii.gz: T1 is from"),
    "a grid elsewhere": ("t2.nii.gz", "moved.nii.gz", "line 3: {folder}/moved.nii.gz: shape 12 x"),
    "labels by the hundred": ("mask.nii.gz", "many.nii.gz", "480 labels, at most 64; is it an"),
    "digits that float32 has not": ("t2.nii.gz", "far.nii.gz", "have steps of 64; the same file"),
    "no place": ("t2.nii.gz", "nowhere.nii", "affine must be finite and invertible, found [[n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_file_is_named_with_its_line(folder, fault):
    save(folder / "flat.nii.gz", np.full(SHAPE, 5, "i2"))
    save(folder / "large.nii.gz", (4000 * PLACES[..., 1]).astype("f4"))
    save(folder / "many.nii.gz", np.arange(480, dtype="i2").reshape(SHAPE))
    shifted = AFFINE + np.eye(4, k=3) * 5
    save(folder / "moved.nii.gz", PLACES[..., 0].astype("f4"), shifted)
    save(folder / "far.nii.gz", (1e9 + 411 * PLACES[..., 1]).astype("i4"))
    save(folder / "nowhere.nii", PLACES[..., 1].astype("f4"))
    whole = (folder / "nowhere.nii").read_bytes()
    (folder / "nowhere.nii").write_bytes(whole[:280] + 12 * b"\0\0\xc0\x7f" + whole[328:])  # NaN
    there, instead, message = FAULTS[fault]
    cases, faults = read(folder, TABLE.replace(there, instead))
    assert len(cases) == 1 and len(faults) == 1
    ((line,),) = faults.values()
    assert message.format(folder=folder) in line


def test_all_faults_of_all_patients_are_named_at_once(folder):
    rows = TABLE.replace("t1.nii.gz", "a.nii.gz").replace("t2.nii.gz", "b.nii.gz")
    cases, faults = read(folder, rows.replace("#3", "#9"))
    assert not cases and [len(own) for own in faults.values()] == [2, 1]
    rows = TABLE.replace("t1.nii.gz", "a.nii.gz").replace("mask.nii.gz", "t1.nii.gz")
    named = read(folder, rows.replace("365", "900")).faults["p1"]
    words = ("a.nii.gz: missing", "time 900 is beyond", "labels must be whole numbers")
    assert [sum(own in fault for fault in named) for own in words] == [1, 1, 1]
    save(folder / "one.nii.gz", np.arange(480, dtype="i2").reshape(SHAPE) % 2)
    rows = (
        "1,no.nii.gz,gone.nii.gz,0",
        "2,t1.nii.gz,one.nii.gz,1",
        "3,cine.nii.gz#1,mask.nii.gz,2",
    )
    rows = "".join(f"p1,{row},A,\n" for row in rows)
    assert len(read(folder, rows).faults["p1"]) == 2  # none of a first that cannot be compared
    with pytest.raises(DataError, match=r"csv: has times, which need --config\S+=0,730") as told:
        read(folder, TABLE.replace("t1.nii.gz", "a.nii.gz"), time_range=None)
    assert "a.nii.gz: missing" in str(told.value)


def test_later_masks_have_no_other_labels(folder):
    other = np.asarray(nib.load(folder / "mask.nii.gz").dataobj).copy()
    other[0, 0] = 3
    save(folder / "other.nii.gz", other)
    rows = TABLE + "p1,4,,other.nii.gz,400,,\n"
    _, faults = read(folder, rows)
    assert "label 3 is not in the first mask, which has -4, 0, 17; another ch" in faults["p1"][0]


def test_a_lesion_may_be_gone_in_a_later_mask(folder):
    save(folder / "none.nii.gz", np.zeros(SHAPE, "i2"))
    (first, _), faults = read(folder, TABLE + "p1,4,,none.nii.gz,400,,\n")
    assert not faults and (first.scan.values["mask"][2] == 1).all()


def test_what_resampling_or_a_range_leaves_nothing_of_is_a_fault(folder):
    save(folder / "far.nii.gz", PLACES[..., 0].astype("f4"), AFFINE + np.eye(4, k=3) * 500)
    rows = "p1,1,t1.nii.gz,,,A,\np1,2,far.nii.gz,,,B,\n"
    _, faults = read(folder, rows, resample=True)
    assert "far.nii.gz: none of it lies on the grid of" in faults["p1"][0]
    _, faults = read(folder, "p1,1,t1.nii.gz,,,A,1000:2000\n")
    assert "t1.nii.gz: nothing of it lies within its range" in faults["p1"][0]


@pytest.mark.parametrize("words", ["0", "730,0", "a,b", "0,inf", "0,1,2"])
def test_a_time_range_is_two_numbers(words):
    with pytest.raises(ConfigError, match="two numbers, the smaller one first, such as 0,730"):
        time_range_of(words)
