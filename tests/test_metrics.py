import numpy as np
import pytest
import skimage.metrics

from nfcl_jax import metrics
from nfcl_jax.metrics import score, surface_scores
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Lesson, frame_by_frame, image_then_mask, mask_head

RNG = np.random.default_rng(0)
SHAPE = (2, 16, 14, 3)


def make_scan(image="cine"):
    return Scan(
        patient="patient001",
        image=image,
        values={
            "image": RNG.uniform(size=SHAPE).astype("f4"),
            "mask": RNG.integers(0, 4, SHAPE).astype("u1"),
        },
        frame_numbers=(1, 2),
        spacing=(1.0, 1.0, 10.0),
        affine=np.eye(4),
    )


def test_psnr_agrees_with_scikit_image_and_with_a_case_by_hand():
    a, b = RNG.uniform(size=(2, 9, 8, 7))
    expected = skimage.metrics.peak_signal_noise_ratio(a, b, data_range=1.0)
    assert metrics.psnr(a, b) == pytest.approx(expected)
    assert metrics.psnr(np.zeros(5), np.full(5, 0.1)) == pytest.approx(20.0)
    assert metrics.psnr(a, a) == float("inf")


def test_ssim_is_the_mean_of_scikit_images_over_slices():
    a, b = RNG.uniform(size=(2, 16, 14, 3)).astype("f4")
    each = [
        skimage.metrics.structural_similarity(a[:, :, k], b[:, :, k], win_size=7, data_range=1.0)
        for k in range(3)
    ]
    assert metrics.ssim(a, b) == pytest.approx(np.mean(each))
    assert metrics.ssim(a, a) == pytest.approx(1.0)


def test_dice_by_hand():
    a, b = np.array([1, 1, 1, 0, 2]), np.array([1, 1, 0, 0, 0])
    assert metrics.dice(a, b, 1) == pytest.approx(2 * 2 / (3 + 2))
    assert metrics.dice(a, b, 2) == 0
    assert np.isnan(metrics.dice(a, b, 3))


def test_the_mean_dice_is_over_whatever_classes_there_are():
    a, b = np.array([0, 7, 7, 9]), np.array([0, 7, 5, 9])
    assert metrics.mean_dice(a, b) == pytest.approx((0 + 2 / 3 + 1) / 3)
    assert np.isnan(metrics.mean_dice(np.zeros(3), np.zeros(3)))


def test_an_image_is_clipped_before_it_is_scored():
    scan, lesson = make_scan(), frame_by_frame(4)[1].lessons[0]
    outputs = scan.intensities[..., None] + np.where(scan.intensities > 0.5, 10.0, -10.0)[..., None]
    ideal = np.where(scan.intensities > 0.5, 1.0, 0.0)
    scores = metrics.score(lesson, scan, outputs)
    assert scores["psnr"] == pytest.approx(metrics.psnr(scan.intensities[1], ideal[1]))


def test_a_mask_is_scored_by_its_largest_logit_without_absent_classes():
    scan, lesson = make_scan("ED"), image_then_mask()[1].lessons[0]
    scan.labels[scan.labels == 3] = 0
    logits = np.concatenate([RNG.normal(size=(*SHAPE, 1)), np.eye(4)[scan.labels] * 5], axis=-1)
    scores = metrics.score(lesson, scan, logits)
    assert scores["dsc_rv"] == scores["dsc_myo"] == 1
    assert np.isnan(scores["dsc_lv"])
    assert scores["dsc"] == 1


def test_outputs_that_are_not_finite_have_no_score():
    scan = make_scan()
    outputs = np.full((*SHAPE, 5), 0.5)
    outputs[1, 3, 3, 1, :] = np.nan
    frame_1, frame_2 = (task.lessons[0] for task in frame_by_frame(4)[:2])
    assert np.isnan(list(metrics.score(frame_2, scan, outputs).values())).all()
    assert np.isfinite(list(metrics.score(frame_1, scan, outputs).values())).all()
    assert metrics.has_diverged(frame_2, outputs)
    assert not metrics.has_diverged(frame_1, outputs)


def test_a_constant_has_collapsed_and_a_poor_fit_has_not():
    scan = make_scan("ED")
    image, mask = (task.lessons[0] for task in image_then_mask())
    outputs = np.zeros((*SHAPE, 5), "f4")
    outputs[..., 0] = 0.37
    assert metrics.has_collapsed(image, scan, outputs)
    assert metrics.has_collapsed(mask, scan, outputs)
    outputs[..., 0] += 0.1 * (scan.intensities - 0.5)
    outputs[..., 1:] += np.eye(4)[scan.labels]
    assert not metrics.has_collapsed(image, scan, outputs)
    assert not metrics.has_collapsed(mask, scan, outputs)


def test_a_mask_whose_logits_vary_together_has_collapsed():
    scan, mask = make_scan("ED"), image_then_mask()[1].lessons[0]
    outputs = np.repeat(RNG.normal(size=(*SHAPE, 1)), 5, axis=-1)
    assert metrics.has_collapsed(mask, scan, outputs)


def test_a_number_that_rounds_to_zero_has_no_sign():
    assert metrics.format_number("psnr", -0.04) == "0.0"
    assert metrics.format_number("ssim", np.float64(-0.006)) == "-0.01"


def test_surfaces_of_boxes_that_moved_are_as_far_apart_as_they_moved():
    """Two voxels of 1.5 mm along x, seen by the sides of a long box."""
    a = np.zeros((40, 12, 12), bool)
    a[10:20, 3:9, 3:9] = True
    b = np.roll(a, 2, axis=0)
    hd95, nsd = surface_scores(a, b, (1.5, 1.5, 3.0))
    assert hd95 == pytest.approx(3.0) and 0 < nsd < 1
    assert surface_scores(a, a, (1.5, 1.5, 3.0)) == (0.0, 1.0)
    assert surface_scores(a, np.roll(a, 1, axis=0), (1.5, 1.5, 3.0))[1] == 1.0  # the tolerance
    nothing = np.zeros_like(a)
    assert surface_scores(a, nothing, (1.0, 1.0, 1.0)) == (np.inf, 0.0)
    assert np.isnan(surface_scores(nothing, nothing, (1.0, 1.0, 1.0))).all()


def test_outlines_of_a_single_slice_have_no_lids():
    """A square and a larger one around it: no point of the one outline is on the other."""
    a, b = np.zeros((2, 20, 20, 1), bool)
    a[6:14, 6:14], b[4:16, 4:16] = True, True
    hd95, nsd = surface_scores(a, b, (1.0, 1.0, 1.0))
    assert nsd == 0.0 and 2.0 <= hd95 <= 2.0 * np.sqrt(2)


def test_a_label_that_a_frame_lacks_is_left_out_of_the_mean_over_frames():
    head = mask_head("m", 0, 2, (0, 5))
    values = np.zeros((2, 8, 8, 2), np.uint8)
    values[0, 2:5, 2:5] = 1
    scan = Scan("p", "scan", {"m": values}, (1, 2), (1.0, 1.0, 1.0), np.eye(4), source={"rows": []})
    outputs = np.stack([1.0 - values, values], -1)
    found = score(Lesson(head, (0, 1)), scan, outputs)
    assert found["dsc_5"] == found["dsc"] == found["nsd_5"] == 1.0 and found["hd95_5"] == 0.0
    outputs[1, 0, 0, 0] = np.nan
    assert np.isnan(list(score(Lesson(head, (0, 1)), scan, outputs).values())).all()
