import numpy as np
import pytest
import skimage.metrics

from nfcl_jax import metrics
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import frame_by_frame, image_then_mask

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
