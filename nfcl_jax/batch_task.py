"""One batch of scans and the task that it learns, as the compiled programs take it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from nfcl_jax.arguments import Static, TaskArrays, frames_of
from nfcl_jax.batching import filled
from nfcl_jax.curve import points_asked
from nfcl_jax.fields import FIELDS, Params, create_field
from nfcl_jax.padded import PaddedScan, padded_size, stack_scans
from nfcl_jax.params import resize_tables, separate_classes
from nfcl_jax.points import num_space_axes
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Task, heads_of, merge_lessons, num_channels, num_frames
from nfcl_jax.strategies import FINETUNE
from nfcl_jax.strategies.base import Strategy

STEPS_PER_CHUNK = 50  # between two looks at the losses


class Recipe(NamedTuple):
    """How every task is fitted.

    Attributes:
      field: its name and constants, as `fields.create_field` takes them.
      strategy: used from the second task on.
      learning_rate: of Adam.
      muon_rate: of Muon, for the layers' matrices; 0 leaves them to Adam.
      later_factor: what both are multiplied by in a later task that teaches no new head.
      mask_later_factor: the same where it teaches a new mask, but no new image. The output layer
        then is Adam's, at the whole rate.
      keep_optimiser: whether its moments go on from one task to the next.
      warmup_steps: of each task, in which the rate grows to its value.
      schedule: of the rate after that, one of `config.SCHEDULES`.
      num_steps: per task.
      batch_size: points per step; 0 is every voxel.
      in_passes: whether they are drawn in passes over all voxels, not with replacement.
      scans_per_batch: as `make_batches` takes it; None is what `plan.scans_at_once` says.
      seed: of all random numbers.
    """

    field: Mapping[str, Any]
    strategy: Strategy
    learning_rate: float
    muon_rate: float
    later_factor: float
    mask_later_factor: float
    keep_optimiser: bool
    warmup_steps: int
    schedule: str
    num_steps: int
    batch_size: int
    in_passes: bool
    scans_per_batch: int | None
    seed: int


def points_per_step(recipe: Recipe, scan: Scan) -> int:
    """That a scan asks for in a step on one frame, without a strategy; see `curve.points_asked`."""
    field = create_field(recipe.field, channels=1, rows=1)
    return points_asked(field, recipe.batch_size, scan.num_voxels)


class BatchTask(NamedTuple):
    """One batch of scans and the task that it learns, the last of `tasks`; the batch is made up to
    `count` scans."""

    batch: Sequence[Scan]
    count: int
    tasks: Sequence[Task]
    recipe: Recipe
    mesh: Mesh

    @property
    def rows(self) -> int:
        """Of a table, in the batch: all frames of the padded grid."""
        return self.batch[0].num_frames * self.num_voxels

    @property
    def num_voxels(self) -> int:
        """Of one frame, padded."""
        return padded_size(max(scan.num_voxels for scan in self.batch))

    @property
    def space(self) -> int:
        """The coordinates of a place."""
        return num_space_axes(self.batch[0].shape)

    def resized(self, learned: Any, rows: int) -> Any:
        """With tables of so many rows, if the field has one for its grid."""
        on_grid = FIELDS[self.recipe.field["name"]].on_grid
        return resize_tables(learned, rows) if on_grid else learned

    def as_begun(self, scan: Scan, params: Params) -> Params:
        """The parameters that a scan begins the task with: the last task's. DINER that is to
        `separate_classes` does so in a task of masks alone, on frames that it knows."""
        *before, new = self.tasks
        known = {frame for task in before for frame in task.frames}
        masks = all(head.kind == "mask" for head, _ in new.lessons) and known.issuperset(new.frames)
        if self.recipe.field.get("separate_classes") and masks:
            for head, frames in new.lessons:
                params = separate_classes(params, frames, scan.values[head.name])
        return params


def task_arguments(task: BatchTask) -> tuple[Static, PaddedScan, TaskArrays]:
    """What the compiled programs take to fit a batch to its task; see `step`."""
    *before, new = task.tasks
    recipe, largest = task.recipe, max(scan.num_voxels for scan in task.batch)
    strategy = recipe.strategy if before else FINETUNE
    fresh = heads_of([new]) - heads_of(before)
    later = bool(before) and all(head.kind == "mask" for head in fresh)
    factor = (recipe.mask_later_factor if fresh else recipe.later_factor) if later else 1.0
    own_output = later and fresh and (recipe.muon_rate or factor != 1)
    previous, earlier = (
        merge_lessons(tasks) if strategy.acts else () for tasks in (before[-1:], before)
    )
    stop_earlier, whole = num_frames(before) if earlier else 0, recipe.batch_size == 0
    static = Static(
        field=create_field(recipe.field, num_channels(task.tasks), task.rows, task.space),
        strategy=strategy,
        learning_rate=recipe.learning_rate * factor,
        muon_rate=recipe.muon_rate * factor,
        output_rate=recipe.learning_rate if own_output else None,
        keep_optimiser=recipe.keep_optimiser,
        warmup_steps=recipe.warmup_steps,
        schedule=recipe.schedule,
        num_steps=recipe.num_steps,
        steps_per_chunk=STEPS_PER_CHUNK,
        batch_size=recipe.batch_size,
        in_passes=recipe.in_passes,
        num_voxels=task.num_voxels,
        heads=tuple(lesson.head for lesson in new.lessons),
        num_frames=new.frames[-1] + 1 - new.frames[0],
        previous_heads=tuple(lesson.head for lesson in previous),
        earlier_heads=tuple(lesson.head for lesson in earlier),
        # Only a step over every voxel needs to know; otherwise one program serves every task.
        num_earlier_frames=stop_earlier if whole else task.batch[0].num_frames,
        revisits=whole and {frame for task in before for frame in task.frames} == set(new.frames),
    )
    arrays = TaskArrays(
        number=jnp.int32(len(task.tasks)),
        new=frames_of(new.lessons),
        previous=frames_of(previous),
        earlier=frames_of(earlier),
        stop_earlier=jnp.int32(stop_earlier * largest),
        stop_seen=jnp.int32(num_frames(task.tasks) * largest),
    )
    scans = stack_scans(filled(task.batch, task.count), task.num_voxels, recipe.seed)
    return static, scans, arrays
