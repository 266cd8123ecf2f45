import numpy as np
import pytest

from nfcl_jax import scan, scenarios
from nfcl_jax.scenarios import MASK, SCENARIOS, Lesson, Task, image_head, teach

DOMAIN, SIGNAL = SCENARIOS["domain_expansion"], SCENARIOS["signal_expansion"]


def test_domain_expansion_learns_one_frame_after_the_other():
    tasks = DOMAIN.tasks(1.0)
    assert [task.frames for task in tasks] == [(0,), (1,), (2,), (3,)]
    assert {task.head for task in tasks} == {image_head(1.0)}
    assert scenarios.num_channels(tasks) == 1


def test_signal_expansion_adds_four_channels_on_the_same_frame():
    image, mask = SIGNAL.tasks(1.0)
    assert image.frames == mask.frames == (0,)
    assert image.head.channels == slice(0, 1)
    assert mask.head.channels == slice(1, 5)
    assert scenarios.num_channels([image]) == 1
    assert scenarios.num_channels([image, mask]) == 5


def test_equal_scenarios_share_their_heads_so_that_programs_are_found_again():
    assert DOMAIN.tasks(0.5) == DOMAIN.tasks(0.5)
    assert DOMAIN.tasks(0.5) != DOMAIN.tasks(1.0)


@pytest.mark.parametrize(
    ("available", "expected"),
    [(4, (1, 2, 3, 4)), (12, (1, 5, 8, 12)), (30, (1, 11, 20, 30)), (35, (1, 12, 24, 35))],
)
def test_frames_are_first_last_and_two_between(available, expected):
    assert scan.equidistant_frames(available, 4) == expected


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="4 frames are wanted, the scan has 3"):
        scan.equidistant_frames(3, 4)


def test_intensities_are_scaled_to_the_unit_interval():
    scaled = scan.scale_intensities(np.array([-5.0, 0.0, 15.0]))
    np.testing.assert_allclose(scaled, [0, 0.25, 1])
    assert scaled.dtype == np.float32


def test_lessons_of_earlier_tasks_are_merged_by_head():
    image = image_head(1.0)
    tasks = [
        teach("a", image, [0]),
        Task("b", (Lesson(MASK, (1, 3)), Lesson(image, (2, 4)))),
        teach("c", MASK, [0]),
    ]
    merged = scenarios.merge_lessons(tasks)
    assert merged == (Lesson(image, (0, 2, 4)), Lesson(MASK, (0, 1, 3)))
    assert scenarios.merge_lessons([]) == ()
    assert tasks[1].frames == (1, 2, 3, 4) and tasks[1].head == MASK


def test_frames_are_ranges_without_gaps():
    assert scenarios.ranges_of([]) == []
    assert scenarios.ranges_of([4, 0, 1, 2, 6]) == [(0, 3), (4, 5), (6, 7)]


def test_a_scenario_knows_how_many_frames_it_needs():
    assert (DOMAIN.num_frames, SIGNAL.num_frames) == (4, 1)
    assert scenarios.num_frames([]) == 0
