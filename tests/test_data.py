import shutil

import nibabel as nib
import numpy as np
import pytest

from nfcl_jax.data.acdc import find_patients, read_info, read_phase
from nfcl_jax.data.acdc import read_cine as read_frames
from nfcl_jax.data.cohorts import read_scans
from nfcl_jax.data.phantom import write_phantom
from nfcl_jax.errors import DataError


def read_cine(folder):
    return read_frames(folder, num_frames=4)


@pytest.fixture
def patient(phantom_root, tmp_path):
    """A copy of one phantom patient that a test may damage."""
    shutil.copytree(phantom_root / "patient001", tmp_path / "patient001")
    return tmp_path / "patient001"


def rewrite(path, change):
    image = nib.load(path)
    nib.save(nib.Nifti1Image(change(image.get_fdata(dtype="f4")), image.affine), path)


def test_phantom_patients_differ_and_beat(phantom_root):
    scans = read_scans(phantom_root, "signal_expansion")
    assert [scan.name for scan in scans[:3]] == ["patient001/ED", "patient001/ES", "patient002/ED"]
    assert len({scan.shape for scan in scans}) == 3
    frames = {nib.load(p).shape[3] for p in phantom_root.glob("*/*_4d.nii.gz")}
    assert len(frames) == 3
    for ed, es in zip(scans[::2], scans[1::2], strict=True):
        assert set(np.unique(ed.labels)) == {0, 1, 2, 3}
        cavity = [np.mean(scan.labels == 3) for scan in (ed, es)]
        assert 0.2 < cavity[1] / cavity[0] < 0.8  # blood is pumped out
        for scan in (ed, es):
            blood, muscle = (scan.intensities[scan.labels == k].mean() for k in (3, 2))
            assert blood > 1.8 * muscle


def test_phantom_noise_is_rician(phantom_root):
    """In air the magnitude of complex Gaussian noise has mean / std of sqrt(pi / (4 - pi))."""
    corner = nib.load(phantom_root / "patient001/patient001_4d.nii.gz").get_fdata()[:4, :4]
    assert corner.mean() / corner.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.05)


def test_phantom_is_the_same_for_the_same_seed(phantom_root, tmp_path):
    again = write_phantom(tmp_path, num_patients=1)
    a, b = (read_cine(root / "patient001").intensities for root in (phantom_root, again))
    np.testing.assert_array_equal(a, b)
    other = write_phantom(tmp_path / "other", num_patients=1, seed=1)
    assert not np.array_equal(a, read_cine(other / "patient001").intensities)


def test_phantom_never_overwrites_patients(patient):
    before = (patient / "Info.cfg").read_text()
    with pytest.raises(FileExistsError, match="holds patients already"):
        write_phantom(patient.parent, num_patients=1, seed=5)
    assert (patient / "Info.cfg").read_text() == before


def test_frame_files_are_the_frames_of_the_cine(phantom_root):
    folder = phantom_root / "patient003"
    ed = int(read_info(folder)["ED"])
    assert ed != 1
    cine = nib.load(folder / "patient003_4d.nii.gz")
    assert cine.get_data_dtype() == np.int16 and cine.dataobj.slope != 1
    frame = nib.load(folder / f"patient003_frame{ed:02d}.nii.gz").get_fdata()
    slope = cine.dataobj.slope
    np.testing.assert_allclose(frame, cine.get_fdata()[..., ed - 1], atol=slope)


def test_cine_has_four_frames_scaled_together(phantom_root):
    scan = read_cine(phantom_root / "patient001")
    raw = nib.load(phantom_root / "patient001/patient001_4d.nii.gz").get_fdata()
    assert scan.frame_numbers == (1, 6, 11, 16)
    picked = np.moveaxis(raw[..., [0, 5, 10, 15]], 3, 0)
    expected = (picked - picked.min()) / (picked.max() - picked.min())
    np.testing.assert_allclose(scan.intensities, expected, atol=1e-6)
    assert scan.shape == (4, 48, 42, 5)


@pytest.mark.parametrize("patient_name", ["patient001", "patient090"])
def test_real_patients_are_read_as_nibabel_does(acdc_root, patient_name):
    folder = acdc_root / patient_name
    cine = read_cine(folder)
    raw = nib.load(folder / f"{patient_name}_4d.nii.gz")
    frame = raw.get_fdata()[..., cine.frame_numbers[1] - 1]
    picked = [raw.get_fdata()[..., n - 1] for n in cine.frame_numbers]
    low, high = np.min(picked), np.max(picked)
    np.testing.assert_allclose(cine.intensities[1], (frame - low) / (high - low), atol=1e-5)
    assert cine.spacing == pytest.approx(raw.header["pixdim"][1:4])
    number = {"patient001": 12, "patient090": 11}[patient_name]
    es = read_phase(folder, "ES")
    assert es.frame_numbers == (number,)
    mask = nib.load(folder / f"{patient_name}_frame{number:02d}_gt.nii.gz").get_fdata()
    np.testing.assert_array_equal(es.labels[0], mask)
    assert es.intensities.min() == 0 and es.intensities.max() == 1


def test_all_real_patients_are_found(acdc_root):
    names = [folder.name for folder in find_patients(acdc_root)]
    assert {"patient001", "patient022", "patient090"} <= set(names)
    assert len(read_scans(acdc_root, "domain_expansion", ["patient022", "patient001"])) == 2


def test_a_root_one_level_off_is_pointed_out(phantom_root, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_patients(tmp_path / "nothing")
    with pytest.raises(DataError, match="no patientNNN folder"):
        find_patients(tmp_path)
    with pytest.raises(DataError, match=f"{phantom_root} would be right"):
        find_patients(phantom_root / "patient001")
    with pytest.raises(DataError, match=f"{phantom_root} would be right"):
        find_patients(phantom_root.parent)


def test_a_patient_that_is_not_there_is_named(phantom_root):
    with pytest.raises(DataError, match=r"no folder of patient077; there are patient001, "):
        find_patients(phantom_root, ["patient001", "patient077"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ES: 5\n", "ED must be a frame number from 1, found none"),
        ("ED: 0\nES: 5\n", "ED must be a frame number from 1, found '0'"),
        ("ED: 1\nES: five\n", "ES must be a frame number from 1, found 'five'"),
        ("ED: 1\nES 5\n", "line 2: expected 'key: value', found 'ES 5'"),
    ],
)
def test_a_malformed_info_names_file_and_fault(patient, text, message):
    (patient / "Info.cfg").write_text(text)
    with pytest.raises(DataError, match="Info.cfg.*" + message):
        read_info(patient)


def test_damaged_files_are_named(patient):
    cine = patient / "patient001_4d.nii.gz"
    content = cine.read_bytes()
    cine.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"patient001_4d.nii.gz: not a readable NIfTI file"):
        read_cine(patient)
    cine.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"patient001_4d.nii.gz: not a readable NIfTI file"):
        read_cine(patient)
    cine.unlink()
    with pytest.raises(DataError, match=r"patient001_4d.nii.gz: missing"):
        read_cine(patient)


def spoil(value):
    def change(data):
        data[10, 10, 2] = value
        return data

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(np.nan), "16 voxels are not finite"),
        (lambda data: data * 0 + 3, "every voxel is 3"),
        (lambda data: data[..., :3], "4 frames are wanted, the scan has 3"),
        (lambda data: data[..., 0], "expected 4 dimensions"),
        (lambda data: data[:5], "smaller than the 7 x 7 window"),
    ],
)
def test_unusable_cines_say_why(patient, change, message):
    rewrite(patient / "patient001_4d.nii.gz", change)
    with pytest.raises(DataError, match=r"patient001_4d.nii.gz: .*" + message):
        read_cine(patient)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(4), "labels must be 0 to 3"),
        (spoil(0.5), "labels must be 0 to 3"),
        (lambda mask: mask * 0, "the mask is empty"),
        (lambda mask: mask[:-1], r"shape \(47, 42, 5\), its image has \(48, 42, 5\)"),
    ],
)
def test_unusable_masks_say_why(patient, change, message):
    rewrite(next(patient.glob("*frame01_gt.nii.gz")), change)
    with pytest.raises(DataError, match="patient001_frame01_gt.nii.gz: .*" + message):
        read_phase(patient, "ED")


def test_all_faults_of_all_patients_are_told_at_once(phantom_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(phantom_root, root)
    (root / "patient001/Info.cfg").unlink()
    rewrite(next((root / "patient003").glob("*frame03_gt.nii.gz")), lambda mask: mask * 0)
    with pytest.raises(DataError) as error:
        read_scans(root, "signal_expansion")
    lines = str(error.value).splitlines()
    assert len(lines) == 3  # the missing Info.cfg once, not for ED and for ES
    assert "patient001/Info.cfg: missing" in lines[1]
    assert "patient003_frame03_gt.nii.gz: the mask is empty" in lines[2]
