"""`nfcl_jax.learn`: one image after the other, from Python, by the same engine."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from test_sequence import AFFINE, PLACES
from test_table_run import learn as learn_table
from test_table_run import same

import nfcl_jax
from nfcl_jax.checkpoints import load_all
from nfcl_jax.config import make_config
from nfcl_jax.errors import ConfigError, DataError, RunError
from nfcl_jax.recommended import RECIPES, recommended

FEW = {"num_steps": 6, "batch_size": 64, "field.width": 16, "field.depth": 2}
FIRST, SECOND = PLACES[..., 0].astype("f4"), (PLACES[..., 1] ** 2).astype("f4")
LABELS = np.where(PLACES[..., 2] > 0, 7, 0)


def learn(workdir, image=FIRST, settings=FEW, **more):
    return nfcl_jax.learn(image, workdir=workdir, settings=settings, **more)


def tasks(run):
    return [(task["name"], len(task["lessons"])) for task in run.config["tasks"]]


def test_an_image_is_fitted_and_others_are_added(tmp_path):
    run = learn(tmp_path, time_range=(0, 730))
    assert tasks(run) == [("image at 0", 1)] and run.tasks == (1,)
    run = run.learn(SECOND, time=365)
    run = run.learn(SECOND, channel="FLAIR")
    run = run.learn(mask=LABELS, time=0, channel="lesions")
    names = ["image at 0", "image at 365", "FLAIR at 365", "lesions at 0"]
    assert [name for name, _ in tasks(run)] == names
    kept = run.scores
    assert set(kept[kept["trained_task"] == 4]["evaluated_task"]) == {1, 2, 3, 4}
    assert {"dsc_7", "psnr"} <= set(kept["metric"])
    field = run.field(units="mm")
    assert field(np.array([[3.0, 2.0, 1.0, 365.0]])).shape == (1, 4)
    path = run.to_nifti("scan", 4, tmp_path / "lesions.nii.gz", output="lesions")
    assert set(np.unique(nib.load(path).dataobj)) <= {0, 7}


def test_the_folder_is_all_that_is_needed_to_go_on(tmp_path):
    """And what is known from it alone is not measured."""
    learn(tmp_path / "a").learn(SECOND, time=0.5)
    learn(tmp_path / "b")
    run = nfcl_jax.open_run(tmp_path / "b").learn(SECOND, time=0.5)
    own = [load_all(tmp_path / name, 2)["scan/scan"] for name in "ab"]
    assert same(*own)
    after = run.scores[run.scores["trained_task"] == 2]
    assert set(after["evaluated_task"]) == {2}


def test_what_is_learned_is_not_learned_again(tmp_path):
    run = learn(tmp_path)
    again = learn(tmp_path)
    assert again.tasks == run.tasks == (1,)
    with pytest.raises(
        DataError, match="image at 0 was learned in task 1, from another file or other values"
    ):
        learn(tmp_path, SECOND)
    assert learn(tmp_path, SECOND, time=1).tasks == (1, 2)
    assert learn(tmp_path, SECOND, time=1).tasks == (1, 2)
    with pytest.raises(DataError, match="the image was learned already; the rest alone would be"):
        learn(tmp_path, FIRST, time=0, mask=LABELS)


def test_the_same_time_range_in_other_digits_is_the_same(tmp_path):
    learn(tmp_path, time_range=(0, 730))
    assert learn(tmp_path, time_range=(0.0, np.float32(730))).tasks == (1,)
    with pytest.raises(ConfigError, match="time_range = '0,730' instead of '0,731'"):
        learn(tmp_path, time_range=(0, 731))


def test_what_is_learned_is_not_learned_on_other_terms(tmp_path):
    """Which would otherwise be lost without a word."""
    learn(tmp_path, spacing=(1.5, 1.5, 10.0))
    learn(tmp_path)
    for more, words in (
        ({"spacing": (1, 1, 10)}, "learned in task 1 with shape 12 x 10 x 4, affine"),
        ({"intensity_range": (0, 100)}, "with an intensity_range of -1, 1"),
        ({"intensity_range": (-1, 1 + 1e-4)}, "with an intensity_range of -1, 1"),
        ({"image": None, "mask": LABELS, "intensity_range": (0, 1)}, "range is of an image"),
    ):
        with pytest.raises(DataError, match=words):
            learn(tmp_path, **more)
    with pytest.raises(DataError, match="shape 12 x 10 x 4, affine"):
        learn(tmp_path, nib.Nifti1Image(FIRST, np.diag([2, 2, 8, 1])))


def test_a_run_that_was_moved_is_not_begun_again_in_its_old_place(tmp_path):
    run = learn(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(RunError, match="is no longer there"):
        run.learn(SECOND, time=1)
    assert not (tmp_path / "old").exists()
    assert nfcl_jax.open_run(tmp_path / "new").learn(SECOND, time=1).tasks == (1, 2)


def test_a_channel_may_be_called_what_a_mask_has(tmp_path):
    run = learn(tmp_path, channel="probabilities").learn(mask=LABELS)
    path = run.to_nifti("scan", 2, tmp_path / "image.nii.gz", output="probabilities")
    assert nib.load(path).shape == (*FIRST.shape, 1)  # a frame, and no classes


def test_an_interrupted_task_is_learned_by_the_same_call(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    run = learn(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.learn(SECOND, time=1, on_progress=stop)
    run = run.learn(SECOND, time=1)
    assert run.tasks == (1, 2)
    assert same(
        load_all(tmp_path, 2)["scan/scan"],
        load_all(learn(tmp_path / "b").learn(SECOND, time=1).workdir, 2)["scan/scan"],
    )


@pytest.mark.slow
def test_the_engine_is_that_of_a_table(tmp_path):
    """The same values, by files and by arrays, are the same field to the bit."""
    rows = ["scan,1,one.nii.gz,,0,,", "scan,2,two.nii.gz,,365,,", "scan,3,,mask.nii.gz,0,,"]
    for name, values in (("one", FIRST), ("two", SECOND), ("mask", LABELS.astype("i2"))):
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / f"{name}.nii.gz")
    (own,) = learn_table(tmp_path, tmp_path / "a", rows)
    settings = {k: v for k, v in FEW.items() if k not in ("num_steps", "batch_size")}
    paper = {"muon_rate": 0.0, "learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0}
    paper |= {
        "in_passes": False,
        "later_factor": 1.0,
        "mask_later_factor": 1.0,
        "field.time_scale": 1.0,
        "mask_factor": 1.0,
    }
    paper |= {"distillation.weight": 10.0, "num_steps": 12, "batch_size": 64}
    run = learn(tmp_path / "b", nib.Nifti1Image(FIRST, AFFINE), settings | paper,
                time_range=(0, 730))  # fmt: skip
    run = run.learn(nib.Nifti1Image(SECOND, AFFINE), time=365)
    run = run.learn(mask=nib.Nifti1Image(LABELS.astype("i2"), AFFINE), time=0)
    for task in (1, 2, 3):
        theirs = load_all(own.workdir, task)["scan/scan"]
        assert same(theirs, load_all(tmp_path / "b", task)["scan/scan"])


def test_the_recommended_recipe_is_the_default(tmp_path):
    config = learn(tmp_path).config
    assert config["muon_rate"] == RECIPES["siren"].muon_rate
    assert config["distillation"]["weight"] == RECIPES["siren"].weight
    assert config["mask_factor"] == RECIPES["siren"].weight / RECIPES["siren"].mask_weight
    assert config["in_passes"]
    for strategy in ("distillation", "ewc"):
        diner = recommended(make_config("sequence", "diner", strategy))
        assert diner["field"]["separate_classes"] == (strategy == "distillation")


def test_pictures_and_fields_without_time(tmp_path):
    picture = Image.fromarray((np.arange(180).reshape(12, 15)).astype(np.uint8))
    path = tmp_path / "p.png"
    picture.save(path)
    run = learn(tmp_path / "r", str(path), time_range=None, field="finer")
    assert run.field().shape == (15, 12, 1) and run.field()(np.zeros((1, 2))).shape == (1, 1)
    run = run.learn(picture, channel="again")
    assert run.field().channels == 2
    with pytest.raises(DataError, match="a time needs a time_range"):
        run.learn(picture, time=3)


def test_bad_calls_say_what_would_be_right(tmp_path, runs):
    with pytest.raises(DataError, match="neither an image nor a mask"):
        learn(tmp_path, None)
    with pytest.raises(ConfigError, match="settings: a run has no 'steps'"):
        learn(tmp_path, settings={"steps": 3})
    with pytest.raises(ConfigError, match="num_steps must be"):
        learn(tmp_path, settings={"num_steps": 0})
    with pytest.raises(DataError, match="One grid, or resample=True"):
        learn(tmp_path).learn(FIRST[1:], time=1)
    with pytest.raises(DataError, match="time 3 is beyond the time_range 0,1"):
        learn(tmp_path).learn(FIRST, time=3)
    with pytest.raises(ConfigError, match="seed"):
        learn(tmp_path, settings=FEW | {"seed": 4})
    with pytest.raises(DataError, match="a number for each axis would be right"):
        learn(tmp_path / "b", spacing=(1, None, 1))
    with pytest.raises(DataError, match="a spacing is of arrays"):
        learn(tmp_path / "b", nib.Nifti1Image(FIRST, AFFINE), spacing=(1, 1, 1))
    with pytest.raises(DataError, match="colour is said of an array"):
        learn(tmp_path / "b", nib.Nifti1Image(FIRST, AFFINE), colour=True)
    with pytest.raises(DataError, match="time must be a number, got True"):
        learn(tmp_path / "b", time=True)
    with pytest.raises(TypeError, match="learn has no 'chanel'; there are mask, time, channel,"):
        learn(tmp_path / "b", chanel="T1")
    with pytest.raises(DataError, match="masked; filled ones would be right"):
        learn(tmp_path / "b", np.ma.masked_less(FIRST, 0))
    with pytest.raises(ValueError, match=r"times must be 1 to .*; got 2\.5"):
        nfcl_jax.open_run(tmp_path).to_nifti("scan", 1, tmp_path / "x.nii", times=2.5)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: not a folder"):
        learn(tmp_path / "file")
    own = learn(tmp_path / "d", nib.Nifti1Image(FIRST, AFFINE), mask=LABELS)
    assert own.scans[0]["spacing"] == [1.5, 1.5, 3.0]
    nib.save(nib.Nifti1Image(FIRST, AFFINE), tmp_path / "first.nii")
    assert learn(tmp_path / "e", tmp_path / "first.nii", mask=LABELS).tasks == (1,)
    placeless = learn(tmp_path / "c", nib.Nifti1Image(FIRST, None))
    assert not placeless.scans[0]["placed"]
    paper = nfcl_jax.open_run(runs("domain_expansion", "siren", "finetune"))
    with pytest.raises(ConfigError, match="the tasks of domain_expansion are fixed"):
        paper.learn(FIRST)


def test_a_run_of_a_table_learns_by_its_table(tmp_path):
    nib.save(nib.Nifti1Image(FIRST, AFFINE), tmp_path / "one.nii.gz")
    (own,) = learn_table(tmp_path, tmp_path / "a", ["p,1,one.nii.gz,,0,,"])
    with pytest.raises(ConfigError, match=r"scans\.csv; a row there would be right"):
        nfcl_jax.open_run(own.workdir).learn(SECOND, time=1)


def test_the_same_script_again_learns_nothing(tmp_path):
    """Whatever time the last task had; and what it holds is measured again."""

    def script():
        run = learn(tmp_path, time_range=(0, 730), channel="T1")
        run = run.learn(SECOND, time=365, channel="T1")
        run = run.learn(SECOND[::-1].copy(), channel="FLAIR")
        return run.learn(mask=LABELS, time=0)

    first, again = script(), script()
    assert first.tasks == again.tasks == (1, 2, 3, 4)
    later = again.learn(SECOND, channel="T2", time=365)
    with pytest.warns(UserWarning, match="mask was learned at 0, .* time=365 would learn it"):
        assert later.learn(mask=LABELS).tasks[-1] == 5
    more = again.learn(mask=LABELS, channel="more", time=9)
    now = more.scores[more.scores["trained_task"] == 6]
    assert set(now["evaluated_task"]) == {1, 2, 3, 4, 6}


def test_joint_training_goes_on_with_what_the_script_holds(tmp_path):
    learn(tmp_path, strategy="joint")
    run = learn(tmp_path, strategy="joint").learn(SECOND, time=1)
    assert run.tasks == (1, 2)
    with pytest.raises(ConfigError, match="joint needs earlier data, which are gone"):
        nfcl_jax.open_run(tmp_path).learn(FIRST[::-1].copy(), time=0.5)


def test_what_cannot_be_learned_is_said_in_one_line(tmp_path, runs):
    frames = nib.Nifti1Image(np.zeros((10, 9, 8, 5), "f4") + np.arange(5), AFFINE)
    inches = nib.Nifti1Image(FIRST, AFFINE)
    inches.header.set_xyzt_units("micron")
    bad = {
        "one frame, such as image.slicer": {"image": frames},
        "lengths are in micrometres": {"image": inches},
        "two numbers, the smaller first": {"intensity_range": (1, 0)},
        "must be two numbers, got 3": {"intensity_range": 3},
        "channel must be a name without slashes": {"channel": "T1/T2"},
        "time must be a number": {"time": "noon"},
        "mask is an image and a mask": {"mask": LABELS, "channel": "mask"},
        "a number for each axis": {"spacing": 2.0},
    }
    for message, how in bad.items():
        with pytest.raises(DataError, match=message):
            learn(tmp_path / "a", **{"image": FIRST} | how)
    assert not (tmp_path / "a/config.json").exists()
    with pytest.raises(ConfigError, match="time_range must be two numbers or None"):
        learn(tmp_path / "a", time_range=5)
    with pytest.raises(ConfigError, match="learning_rate must be a number"):
        learn(tmp_path / "a", settings={"learning_rate": "x"})
    with pytest.raises(DataError, match="T1 is an image and a mask"):
        learn(tmp_path / "b", channel="T1").learn(mask=LABELS, channel="T1")
    theirs = runs("domain_expansion", "siren", "finetune")
    with pytest.raises(ConfigError, match="holds a run of domain_expansion"):
        learn(theirs)
    with pytest.raises(ConfigError, match="holds other runs"):
        learn(theirs.parents[1])


def test_numbers_of_numpy_colours_and_copies(tmp_path):
    colour = np.stack([FIRST[:, :, 0]] * 3, -1)
    ends = FIRST.min(), FIRST.max()
    few = FEW | {"num_steps": np.int64(3)}
    run = learn(
        tmp_path, colour, few, mask=1 * (FIRST[:, :, 0] > 0), colour=True, intensity_range=ends
    )
    assert run.field().channels == 5
    values = FIRST.copy()
    image = nib.Nifti1Image(values, AFFINE)
    run = learn(tmp_path / "b", image)
    values[:] = 0
    assert run.learn(SECOND, time=1, spacing=(1.5, 1.5, 3.0)).tasks == (1, 2)


def test_a_fit_that_fails_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="a fit diverged or collapsed"):
        learn(tmp_path, settings=FEW | {"learning_rate": 1e30, "muon_rate": 0.0})
