import numpy as np
import pytest

from nfcl_jax import scenarios
from nfcl_jax.scenarios import MASK, Task, image_output


def test_domain_expansion_learns_one_frame_after_the_other():
    tasks = scenarios.domain_expansion()
    assert [task.frames for task in tasks] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert {task.output for task in tasks} == {image_output(1.0)}
    assert scenarios.num_channels(tasks) == 1


def test_signal_expansion_adds_four_outputs_on_the_same_frame():
    image, mask = scenarios.signal_expansion()
    assert image.frames == mask.frames == (0, 1)
    assert image.output.channels == slice(0, 1)
    assert mask.output.channels == slice(1, 5)
    assert scenarios.num_channels([image]) == 1
    assert scenarios.num_channels([image, mask]) == 5


def test_equal_scenarios_share_their_outputs_so_that_programs_are_found_again():
    assert scenarios.domain_expansion(0.5) == scenarios.domain_expansion(0.5)
    assert scenarios.domain_expansion(0.5) != scenarios.domain_expansion(1.0)


@pytest.mark.parametrize(
    ("available", "expected"),
    [(4, (1, 2, 3, 4)), (12, (1, 5, 8, 12)), (30, (1, 11, 20, 30)), (35, (1, 12, 24, 35))],
)
def test_frames_are_first_last_and_two_between(available, expected):
    assert scenarios.equidistant_frames(available) == expected


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="4 frames are wanted, the scan has 3"):
        scenarios.equidistant_frames(3)


def test_intensities_are_scaled_to_the_unit_interval():
    scaled = scenarios.scale_intensities(np.array([-5.0, 0.0, 15.0]))
    np.testing.assert_allclose(scaled, [0, 0.25, 1])
    assert scaled.dtype == np.float32


def test_domains_of_earlier_tasks_are_merged_by_output():
    image = image_output(1.0)
    tasks = [Task("a", image, (0, 1)), Task("b", image, (1, 2)), Task("c", MASK, (0, 1))]
    assert scenarios.merge_domains(tasks) == {image: (0, 2), MASK: (0, 1)}
    assert scenarios.merge_domains([]) == {}


def test_a_gap_between_domains_is_refused():
    image = image_output(1.0)
    with pytest.raises(ValueError, match="image before b leave a gap"):
        scenarios.merge_domains([Task("a", image, (0, 1)), Task("b", image, (2, 3))])
