"""Malformed cohorts: each fault is named before anything is trained, all of them at once."""

import dataclasses
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from commands import typed
from malformed import CINE, FAULTS, change, placed
from small import make_scan

from nfcl_jax.data import acdc, cohorts, volumes
from nfcl_jax.data.cohorts import Dataset, read_cohort, read_scans, refuse_faults
from nfcl_jax.errors import DataError
from nfcl_jax.scan import scaled_by_cine
from nfcl_jax.scenarios import SCENARIOS


@pytest.fixture
def root(phantom_root, tmp_path):
    """A cohort of three, of which a test may damage patient002."""
    shutil.copytree(phantom_root, tmp_path / "training")
    return tmp_path / "training"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_the_others_can_be_used(root, fault):
    damage, message = FAULTS[fault]
    damage(root / "patient002")
    cohort = read_cohort(root, SCENARIOS)
    assert set(cohort.faults) == {"patient002"}
    (line, *_) = cohort.faults["patient002"]
    assert line.startswith(str(root / "patient002")), line
    with pytest.raises(DataError, match=message):
        refuse_faults(cohort.faults)
    for scans in cohort.scans.values():
        assert {scan.patient for scan in scans} == {"patient001", "patient003"}


def test_what_nobody_foresaw_is_a_fault_of_its_patient(root, monkeypatch):
    """Such as a file that may not be read, which root, who runs the tests, may."""
    read = acdc.Path.read_text

    def refuse(path, *arguments, **rest):
        if path == root / "patient002/Info.cfg":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **rest)

    monkeypatch.setattr(acdc.Path, "read_text", refuse)
    cohort = read_cohort(root, SCENARIOS)
    (line,) = cohort.faults["patient002"]
    assert line.startswith(f"{root / 'patient002'}: cannot be read") and "Permission" in line
    assert {scan.patient for scan in cohort.scans["domain_expansion"]} == {
        "patient001",
        "patient003",
    }


def test_extremes_of_float32_are_scaled_to_0_and_1(root):
    change(CINE, lambda x: np.where(x > x.mean(), 3e38, -3e38).astype("f4"))(root / "patient002")
    scan = read_cohort(root, ["domain_expansion"]).scans["domain_expansion"][1]
    assert set(np.unique(scan.intensities)) == {0.0, 1.0}


def test_a_byte_order_mark_is_not_a_fault(root):
    path = root / "patient002/Info.cfg"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert not read_cohort(root, SCENARIOS).faults


def test_all_faults_of_a_patient_are_told_at_once(root):
    patient = root / "patient002"
    for fault in ("not a number", "an empty mask", "no image"):
        FAULTS[fault][0](patient)
    lines = read_cohort(root, SCENARIOS).faults["patient002"]
    assert len(lines) == 3


def test_the_same_scan_under_two_names_is_a_warning(root):
    shutil.rmtree(root / "patient003")
    shutil.copytree(root / "patient001", root / "patient003")
    for path in (root / "patient003").glob("patient001*"):
        path.rename(path.with_name(path.name.replace("patient001", "patient003")))
    cohort = read_cohort(root, SCENARIOS)
    assert not cohort.faults
    assert len(cohort.warnings) == 3  # the cine, ED and ES
    assert "patient003: the same cine as patient001's" in cohort.warnings[0]


@pytest.mark.parametrize(("mm", "warnings"), [(500, 1), (3, 1), (0.5, 0)])
def test_a_mask_that_lies_elsewhere_is_a_warning(root, mm, warnings):
    """From half a voxel on. The affine that nibabel guesses where a file has none is no place."""
    shift = np.eye(4)
    shift[0, 3] = mm
    placed(lambda affine: shift @ affine)(root / "patient002")
    cohort = read_cohort(root, SCENARIOS)
    assert not cohort.faults and len(cohort.warnings) == warnings
    for line in cohort.warnings:
        assert f"_gt.nii.gz: by its affine up to {mm} mm away from patient002_frame" in line
    mask = next((root / "patient002").glob("*_gt.nii.gz"))
    image = nib.load(mask)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), mask)
    cohort = read_cohort(root, SCENARIOS)
    assert not cohort.faults and not cohort.warnings


def test_no_real_mask_lies_elsewhere(acdc_root):
    cohort = read_cohort(acdc_root, SCENARIOS)
    assert not cohort.faults and not cohort.warnings


def test_large_volumes_are_refused_by_the_memory_of_the_machine(root, monkeypatch):
    assert not read_cohort(root, SCENARIOS).faults
    monkeypatch.setattr(volumes, "memory_of_machine", lambda: 2**20)
    faults = read_cohort(root, SCENARIOS).faults
    assert set(faults) == {"patient001", "patient002", "patient003"}
    assert "this machine has 0.0 GB" in faults["patient001"][0]


def test_the_check_by_itself(root, tmp_path):
    command = f"python -m experiments.check_data --root={root}"
    done = typed(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 patients can be used." in done.stdout
    assert not done.stderr
    FAULTS["an empty mask"][0](root / "patient002")
    done = typed(command, tmp_path)
    assert done.returncode == 1
    assert "the mask is empty" in done.stdout and "2 of 3 patients can be used." in done.stdout
    done = typed(f"{command} --scenarios=domain_expansion", tmp_path)
    assert done.returncode == 0, done.stderr  # which asks for no mask
    done = typed(f"{command}/patient001", tmp_path)
    assert done.returncode == 2 and f"{root} would be right" in done.stderr
    done = typed(f"python -m experiments.check_data --root={tmp_path}", tmp_path)
    assert done.returncode == 2 and f"{root} would be right" in done.stderr
    assert os.listdir(tmp_path) == ["training"]


def test_a_tree_of_links_to_a_shared_disk_is_read_as_the_files_it_leads_to(root, tmp_path):
    """As datalad and DVC make them: each file is a link out of the folder, a patient may be one."""
    store, linked = tmp_path / "annex", tmp_path / "linked"
    store.mkdir()
    for number, path in enumerate(sorted(root.rglob("*.*"))):
        if path.is_file():
            target = store / f"object{number}"  # without a suffix, as a content hash
            shutil.copy(path, target)
            link = linked / path.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    (linked / "patient003").rename(tmp_path / "elsewhere")
    (linked / "patient003").symlink_to(tmp_path / "elsewhere")
    (linked / "patients.csv").symlink_to("nowhere")
    cohort, expected = (read_cohort(folder, SCENARIOS) for folder in (linked, root))
    assert not cohort.faults
    for scenario, scans in expected.scans.items():
        for scan, found in zip(scans, cohort.scans[scenario], strict=True):
            assert scan.name == found.name
            np.testing.assert_array_equal(scan.intensities, found.intensities)


def test_a_patient_who_is_a_link_to_nowhere_is_a_fault(root):
    (root / "patient009").symlink_to("unmounted")
    (line,) = read_cohort(root, SCENARIOS).faults["patient009"]
    assert line == f"{root / 'patient009'}: a link to unmounted, where there is no folder."


def test_intensities_are_scaled_by_the_whole_cine_or_by_the_frames(root):
    """The ED image too; and where there is no cine, by itself."""
    raw = nib.load(root / "patient001" / "patient001_4d.nii.gz").get_fdata()
    for scenario in SCENARIOS:
        scan = read_scans(root, scenario, ["patient001"])[0]
        own = read_scans(root, scenario, ["patient001"], intensity_range="frames")[0]
        assert own.intensities.min() == 0 and own.intensities.max() == 1
        assert scan.intensity_range == pytest.approx((raw.min(), raw.max()))
        assert scan.intensity_range != own.intensity_range
        picked = np.moveaxis(raw[..., [n - 1 for n in scan.frame_numbers]], 3, 0)
        for found in (scan, own):
            low, high = found.intensity_range
            expected = (picked - low) / (high - low)
            np.testing.assert_allclose(found.intensities, expected, atol=2e-3)  # as int16 has it
    (root / "patient001/patient001_4d.nii.gz").unlink()
    ed = read_scans(root, "signal_expansion", ["patient001"])[0]
    np.testing.assert_array_equal(ed.intensities, own.intensities)
    (root / "patient001/patient001_4d.nii.gz").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"patient001_4d\.nii\.gz: not a readable NIfTI file"):
        read_scans(root, "signal_expansion", ["patient001"])
    # It does not matter to who does not ask for it.
    unasked = read_scans(root, "signal_expansion", ["patient001"], intensity_range="frames")[0]
    np.testing.assert_array_equal(unasked.intensities, own.intensities)


def test_what_is_beyond_the_cine_widens_its_range():
    scan = make_scan("patient0", (8, 8, 2))
    scan = dataclasses.replace(scan, intensity_range=(10.0, 50.0), cine_range=lambda: (0.0, 40.0))
    scaled = scaled_by_cine(scan)
    assert scaled.intensity_range == (0.0, 50.0) and scaled.intensities.dtype == np.float32
    np.testing.assert_allclose(scaled.intensities, 0.2 + 0.8 * scan.intensities, rtol=1e-6)


def test_an_unknown_data_set_or_image_is_named(root):
    with pytest.raises(DataError, match="unknown data set 'mnms'; there are acdc"):
        read_cohort(root, SCENARIOS, dataset="mnms")
    with pytest.raises(DataError, match="no image 'T2' in ACDC; cine, ED, ES, phases are there"):
        acdc.read_image(root / "patient001", "T2", 1)


def test_a_reader_of_ones_own_is_an_entry(root, monkeypatch):
    """It is asked for the images and frames that the scenario needs; whatever it raises is a fault
    of its patient alone."""
    asked = []

    def read(folder, image, num_frames):
        asked.append((folder.name, image, num_frames))
        if folder.name == "patient002":
            raise ValueError("no such series")
        return acdc.read_image(folder, image, num_frames)

    monkeypatch.setitem(cohorts.DATASETS, "mine", Dataset(acdc.find_patients, read))
    cohort = read_cohort(root, ["domain_expansion"], dataset="mine")
    assert asked == [(f"patient00{i}", "cine", 4) for i in (1, 2, 3)]
    (line,) = cohort.faults["patient002"]
    assert line == f"{root / 'patient002'}: cannot be read (no such series)."
    with pytest.raises(DataError, match="no such series"):
        read_scans(root, "signal_expansion", dataset="mine")

    def read_wrongly(folder, image, num_frames):
        scan = acdc.read_image(folder, image, num_frames + (image == "cine"))
        return dataclasses.replace(scan, values={"image": scan.intensities})

    monkeypatch.setitem(cohorts.DATASETS, "mine", Dataset(acdc.find_patients, read_wrongly))
    with pytest.raises(DataError, match=r"patient001: its reader gave float32 of shape \(5, "):
        read_scans(root, "domain_expansion", dataset="mine")
    with pytest.raises(DataError, match="patient001: its reader gave no labels"):
        read_scans(root, "signal_expansion", dataset="mine")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda x: x + 3, "labels from 3 to 6; whole numbers from 0 to 3"),
        (lambda x: x + 0.5, "labels from 0.5 to 3.5; whole numbers from 0 to 3"),
        (lambda x: x[:, :-1], r"labels of shape \(1, 47, 42, 5\); a task needs shape \(1, 48"),
    ],
)
def test_labels_that_no_task_could_learn_are_refused(root, monkeypatch, labels, message):
    def read(folder, image, num_frames):
        scan = acdc.read_image(folder, "ED", 1)
        return dataclasses.replace(
            scan, image=image, values={**scan.values, "mask": labels(scan.labels)}
        )

    monkeypatch.setitem(cohorts.DATASETS, "mine", Dataset(acdc.find_patients, read))
    with pytest.raises(DataError, match=f"patient001: its reader gave {message}"):
        read_scans(root, "signal_expansion", dataset="mine")


def test_labels_that_no_task_needs_are_left_out(root, monkeypatch):
    """Those of some patients alone too: a batch has labels of all its scans or of none."""

    def read(folder, image, num_frames):
        scan = acdc.read_cine(folder, num_frames)
        return dataclasses.replace(scan, values={**scan.values, "mask": scan.intensities > 0.5})

    monkeypatch.setitem(cohorts.DATASETS, "mine", Dataset(acdc.find_patients, read))
    assert all(s.labels is None for s in read_scans(root, "domain_expansion", dataset="mine"))


def test_patients_that_a_reader_does_not_find_are_missed(root, monkeypatch):
    def find(root, patients):
        return [root / name for name in sorted(patients) if name == "patient001"]

    monkeypatch.setitem(cohorts.DATASETS, "mine", Dataset(find, acdc.read_image))
    with pytest.raises(DataError, match=f"{root}: 0 are here, of the data set mine"):
        read_cohort(root, SCENARIOS, dataset="mine")
    with pytest.raises(DataError, match=f"{root}: 1 of the 2 that are wanted are here"):
        read_cohort(root, SCENARIOS, ["patient001", "patient4"], dataset="mine")


def test_the_memory_that_a_scan_takes_counts_the_frames_that_are_learned(root, monkeypatch):
    shape = nib.load(root / "patient002" / CINE).shape
    whole = np.prod(shape) * volumes.BYTES_PER_VOXEL_READ
    four = whole + 4 * np.prod(shape[:3]) * volumes.BYTES_PER_VOXEL
    monkeypatch.setattr(volumes, "memory_of_machine", lambda: int(four))
    acdc.read_cine(root / "patient002", 4)
    with pytest.raises(DataError, match="this machine has"):
        acdc.read_cine(root / "patient002", 5)
