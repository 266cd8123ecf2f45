"""What is learned in which order: the sequence of tasks over a scan.

A task says where (frames), what (a head's output channels) and how (that head's loss). Growing the
domain and growing the output are then the same code, with other data. A scenario is added by an
entry in SCENARIOS.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from nfcl_jax import losses

NUM_CLASSES = 4  # background, right ventricle, myocardium, left ventricle


class Head(NamedTuple):
    """A group of output channels with one meaning and one loss.

    Attributes:
      name: as tables call it.
      kind: "image" for intensities or "mask" for classes: what the channels are compared with.
      first_channel: of the group.
      num_channels: of the group.
      loss: (outputs, targets) -> a value per point, zero where they agree.
      as_targets: the field's raw outputs as the loss takes targets: the outputs themselves, or the
        softmax's probabilities.
      labels: of a mask's classes in its files; none are 0, 1, ...
    """

    name: str
    kind: str
    first_channel: int
    num_channels: int
    loss: Callable
    as_targets: Callable
    labels: tuple[int, ...] = ()

    @property
    def channels(self) -> slice:
        return slice(self.first_channel, self.first_channel + self.num_channels)


def _identity(outputs):
    return outputs


@functools.lru_cache
def image_head(
    huber_delta: float, name: str = "image", channel: int = 0, num_channels: int = 1
) -> Head:
    """An intensity, or the three colours. Equal arguments give the same object, so that programs
    compiled for it are found again."""
    loss = functools.partial(losses.huber, delta=huber_delta)
    return Head(name, "image", channel, num_channels, loss, _identity)


def mask_head(
    name: str,
    first_channel: int,
    num_classes: int,
    labels: tuple[int, ...] = (),
    factor: float = 1.0,
) -> Head:
    """The logits of classes, of which a voxel has one; `factor` multiplies the loss."""
    loss = losses.binary_cross_entropy if factor == 1 else _scaled_cross_entropy(factor)
    return Head(name, "mask", first_channel, num_classes, loss, jax.nn.softmax, labels)


@functools.lru_cache  # equal functions are one, as those of `image_head`
def _scaled_cross_entropy(factor: float) -> Callable:
    return lambda outputs, targets: factor * losses.binary_cross_entropy(outputs, targets)


MASK = mask_head("mask", 1, NUM_CLASSES)


class Lesson(NamedTuple):
    """A head, and the frames on which it is taught, from 0, in ascending order."""

    head: Head
    frames: tuple[int, ...]


class Task(NamedTuple):
    """What is learned together: each head at most once."""

    name: str
    lessons: tuple[Lesson, ...]

    @property
    def head(self) -> Head:
        """Of the first lesson."""
        return self.lessons[0].head

    @property
    def frames(self) -> tuple[int, ...]:
        """Of all lessons, in ascending order."""
        return tuple(sorted({frame for lesson in self.lessons for frame in lesson.frames}))


def teach(name: str, head: Head, frames: Iterable[int]) -> Task:
    """The task of one head on these frames."""
    return Task(name, (Lesson(head, tuple(frames)),))


class Scenario(NamedTuple):
    """A sequence of tasks, and what it is fitted to.

    Attributes:
      title: a line for tables.
      images: those of a patient that it is fitted to, each on its own: "cine", or "ED" and "ES".
      tasks: Huber's delta -> the tasks.
      meanwhile, forgotten: two phrases for the report's first sentence, such as "Learning the mask"
        and "the image"; the second stands for all tasks but the last.
      strategies: by a strategy's name, its constants that have another default here.
    """

    title: str
    images: tuple[str, ...]
    tasks: Callable[[float], tuple[Task, ...]]
    meanwhile: str
    forgotten: str
    strategies: Mapping[str, Mapping[str, Any]] = {}

    @property
    def num_frames(self) -> int:
        """Frames that every scan must have."""
        return num_frames(self.tasks(1.0))

    @property
    def ends(self) -> tuple[Task, Task]:
        """The first task and the last."""
        tasks = self.tasks(1.0)
        return tasks[0], tasks[-1]


def frame_by_frame(num_frames: int, huber_delta: float = 1.0) -> tuple[Task, ...]:
    """The frames of a cine, one after the other."""
    image = image_head(huber_delta)
    return tuple(teach(f"frame {f + 1}", image, [f]) for f in range(num_frames))


def image_then_mask(huber_delta: float = 1.0) -> tuple[Task, ...]:
    """The image of one frame, then its segmentation mask."""
    return (teach("image", image_head(huber_delta), [0]), teach("mask", MASK, [0]))


# The weights of distillation are by a sweep on real patients (docs/reproduction.md); earlier data
# has the same, so that the two can be compared. Cross-entropy
# on the mask outweighs Huber's loss on the image, hence the larger one there.
SCENARIOS: dict[str, Scenario] = {
    "domain_expansion": Scenario(
        "Domain expansion: four frames, one after the other",
        ("cine",),
        functools.partial(frame_by_frame, 4),  # at t = -1, -1/3, 1/3 and 1
        "Learning four frames in turn",
        "the earlier ones on average",
    ),
    "signal_expansion": Scenario(
        "Signal expansion: an image, then its mask",
        ("ED", "ES"),
        image_then_mask,
        "Learning the mask",
        "the image",
        {
            # A step asks half as many points, and learns as much: docs/performance.md.
            "distillation": {"weight": 10.0, "points": "shared"},
            "joint": {"weight": 10.0},
            "replay": {"weight": 10.0},
        },
    ),
}


# Of a table of scans, whose tasks stand in the config. Frames and masks may be mixed, hence the
# weights.
SEQUENCE = "sequence"
_OF_A_TABLE = Scenario(
    "A table of scans",
    (),
    lambda huber_delta: (),
    "Learning the last task",
    "the earlier ones on average",
    {name: {"weight": 10.0} for name in ("distillation", "joint", "replay")},
)


def all_scenarios() -> dict[str, Scenario]:
    """SCENARIOS, and that of a table."""
    return {**SCENARIOS, SEQUENCE: _OF_A_TABLE}


def tasks_of(config: Mapping[str, Any]) -> tuple[Task, ...]:
    """The tasks of a config: those of its scenario or, for a table of scans, its own."""
    delta, factor = config["huber_delta"], config.get("mask_factor", 1.0)
    if config["scenario"] != SEQUENCE:
        return SCENARIOS[config["scenario"]].tasks(delta)
    return tuple(
        Task(
            task["name"],
            tuple(
                Lesson(_stored_head(lesson["head"], delta, factor), tuple(lesson["frames"]))
                for lesson in task["lessons"]
            ),
        )
        for task in config.get("tasks", ())
    )


def describe_tasks(tasks: Iterable[Task]) -> list[dict[str, Any]]:
    """Tasks as a config holds them, for `tasks_of`."""
    what = ("name", "kind", "first_channel", "num_channels", "labels")
    return [
        {
            "name": task.name,
            "lessons": [
                {
                    "head": {key: getattr(lesson.head, key) for key in what},
                    "frames": list(lesson.frames),
                }
                for lesson in task.lessons
            ],
        }
        for task in tasks
    ]


def _stored_head(stored: Mapping[str, Any], huber_delta: float, factor: float) -> Head:
    name, channel = stored["name"], stored["first_channel"]
    if stored["kind"] == "image":
        return image_head(huber_delta, name, channel, stored["num_channels"])
    return mask_head(name, channel, stored["num_channels"], tuple(stored["labels"]), factor)


def num_channels(tasks: Sequence[Task]) -> int:
    """Output channels that a field needs for `tasks`."""
    return max(lesson.head.channels.stop for task in tasks for lesson in task.lessons)


def num_frames(tasks: Sequence[Task]) -> int:
    """One more than the last frame of `tasks`."""
    return max((task.frames[-1] + 1 for task in tasks), default=0)


def heads_of(tasks: Iterable[Task]) -> set[Head]:
    """All heads that `tasks` taught."""
    return {lesson.head for task in tasks for lesson in task.lessons}


def merge_lessons(tasks: Iterable[Task]) -> tuple[Lesson, ...]:
    """Each head that `tasks` taught, with all frames on which they did."""
    frames: dict[Head, set[int]] = {}
    for lesson in (lesson for task in tasks for lesson in task.lessons):
        frames.setdefault(lesson.head, set()).update(lesson.frames)
    return tuple(Lesson(head, tuple(sorted(own))) for head, own in frames.items())


def ranges_of(frames: Iterable[int]) -> list[tuple[int, int]]:
    """Frames as ranges without a gap, each the first frame and the one after the last."""
    ranges: list[tuple[int, int]] = []
    for frame in sorted(set(frames)):
        if ranges and ranges[-1][1] == frame:
            ranges[-1] = ranges[-1][0], frame + 1
        else:
            ranges.append((frame, frame + 1))
    return ranges
