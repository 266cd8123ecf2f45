"""What a run will take, before it is begun: memory by the compiled programs' own analysis, and
operations by the fields' layers. Nothing is fitted, and no arrays are made but one scan's."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nfcl_jax.arguments import ScanAndMemory, Static, Steps, TaskArrays, TrainState
from nfcl_jax.batch_task import BatchTask, Recipe, points_per_step, task_arguments
from nfcl_jax.batching import Programs, compile_for, fits_at_once, make_batches
from nfcl_jax.padded import padded_size
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import Task

FILLED = 0.8  # of an accelerator's memory; the rest is for what the analysis does not know
LEAST_MEMORY = 8e9  # bytes, of one that does not tell


class Call(NamedTuple):
    """What a task's programs are called with, as shapes and types: see `step`."""

    static: Static
    before: Any
    state: TrainState
    own: ScanAndMemory
    arrays: TaskArrays
    rows: int


class Plan(NamedTuple):
    """What a run will take.

    Attributes:
      scans_per_batch: that a batch has room for.
      batches: how many scans are in each.
      padding: voxels that are padding, beside those that are not; with steps over every voxel they
        take time too.
      parameters: of all fields at the end.
      learned_bytes: that these take, and what a strategy, or Adam, keeps beside them.
      device_bytes: that the largest batch takes on each device, in the task that takes most.
      flops: floating-point operations of all matrix products.
    """

    scans_per_batch: int
    batches: list[int]
    padding: float
    parameters: int
    learned_bytes: int
    device_bytes: int
    flops: float


def scans_at_once(scans: Sequence[Scan], tasks: Sequence[Task], recipe: Recipe, mesh: Mesh) -> int:
    """How many scans go through the programs at once: what the recipe says or, if it says nothing,
    one on each device that is a CPU, which one fills, and on others as many as fit its memory."""
    devices, device = mesh.devices.size, mesh.devices.flat[0]
    if recipe.scans_per_batch is not None:
        return recipe.scans_per_batch
    if not fits_at_once(device):
        return devices
    limit = (device.memory_stats() or {}).get("bytes_limit", LEAST_MEMORY)
    largest = max(scans, key=lambda scan: scan.num_voxels).read()
    own = bytes_for(largest, tasks, recipe, mesh)
    fit = max(int((FILLED * limit - own.fixed) / own.per_scan), 1)
    each = -(-len(scans) // devices)  # on every device, if all went at once
    return devices * -(-each // -(-each // fit))  # in as few batches, and those alike


class Bytes(NamedTuple):
    """On each device: whatever its scans are, and for each of them."""

    fixed: int
    per_scan: int


def bytes_for(
    scan: Scan,
    tasks: Sequence[Task],
    recipe: Recipe,
    mesh: Mesh,
    at_once: bool | None = None,
) -> Bytes:
    """What scans like this take in the last of `tasks`, from the programs for one and for two of
    them on each device; `at_once` is as in `compile_for`."""
    programs, devices = compile_for(mesh, at_once), mesh.devices.size
    one, two = (
        bytes_of(call_of(scan, n * devices, tasks, recipe, mesh), mesh, programs) for n in (1, 2)
    )
    return Bytes(2 * one - two, max(two - one, 1))


def plan_of(scans: Sequence[Scan], tasks: Sequence[Task], recipe: Recipe, mesh: Mesh) -> Plan:
    """What `loop.learn` will take with these arguments."""
    count, batches = make_batches(scans, scans_at_once(scans, tasks, recipe, mesh), mesh)
    sizes = [[scan.num_voxels for scan in batch] for batch in batches]
    padded = sum(len(own) * padded_size(max(own)) for own in sizes)
    largest = max((batch[-1] for batch in batches), key=lambda scan: scan.num_voxels).read()
    calls = [call_of(largest, count, tasks[:n], recipe, mesh) for n in range(1, len(tasks) + 1)]
    # The first task, and the last, with the most of what came before.
    ends = {1: calls[0], len(calls): calls[-1]}.values()
    device_bytes = max(bytes_of(call, mesh, compile_for(mesh)) for call in ends)
    work = [(scan, number) for scan in scans for number in range(len(tasks))]
    parameters = sum(_num_parameters(calls[-1], scan) for scan in scans)
    state = calls[-1].state
    kept = _bytes((state.strategy, state.opt_state if recipe.keep_optimiser else ()))
    return Plan(
        scans_per_batch=count,
        batches=[len(batch) for batch in batches],
        padding=padded / sum(map(sum, sizes)) - 1,
        parameters=parameters,
        learned_bytes=4 * parameters + kept * len(scans) // count,
        device_bytes=device_bytes,
        flops=float(sum(_flops(calls[number], recipe, scan, number) for scan, number in work)),
    )


def _num_parameters(call: Call, scan: Scan) -> int:
    """Of a scan's field; the call's is that of the largest scan, and of a whole batch."""
    sizes = {
        name: sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(layer))
        for name, layer in call.state.params["params"].items()
    }
    if call.static.field.on_grid:
        features = call.state.params["params"]["table"].shape[-1]
        sizes["table"] = scan.num_frames * scan.num_voxels * features
    return sum(sizes.values())


def _flops(call: Call, recipe: Recipe, scan: Scan, before: int) -> float:
    """Of a scan's task that has so many before it."""
    layers, depth = call.state.params["params"], call.static.field.depth
    names = [*(f"hidden_{i}" for i in range(depth)), "output"]
    sizes = [layers[name]["kernel"].shape[1:] for name in names]
    points = points_per_step(recipe, scan) * (recipe.strategy.cost if before else 1.0)
    return recipe.num_steps * points * flops_of_a_point(sizes, call.static.field.on_grid)


def flops_of_a_point(sizes: Sequence[Sequence[int]], on_grid: bool) -> int:
    """Floating-point operations of a step's matrix products for a point, two for each
    multiplication: forward, towards the weights, and towards the inputs of all layers but one that
    takes coordinates.

    Args:
      sizes: inputs and outputs of each layer.
      on_grid: whether the first layer takes entries of a table.
    """
    forward = sum(map(math.prod, sizes))
    towards_inputs = forward if on_grid else forward - math.prod(sizes[0])
    return 2 * (2 * forward + towards_inputs)


def call_of(scan: Scan, count: int, tasks: Sequence[Task], recipe: Recipe, mesh: Mesh) -> Call:
    """How the programs of the last of `tasks` are called for a batch of `count` scans like this."""
    programs, state, memory = compile_for(mesh), None, None
    for number in range(1, len(tasks) + 1):
        task = BatchTask([scan], 1, tasks[:number], recipe, mesh)
        static, one, arrays = task_arguments(task)
        scans = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), one)
        before: Any = (None, {}, None)
        if state is not None:
            params, of_strategy = state.params, state.strategy
            moments = state.opt_state[0]._asdict() if static.keep_optimiser else None
            if static.strategy.begin:
                begin = programs.begin_task.eval_shape
                memory, of_strategy = begin(static, (params, of_strategy), scans, arrays)
            before = params, of_strategy, moments
        state = programs.start_task.eval_shape(static, before, scans, arrays)
    return Call(static, before, state, ScanAndMemory(scans, memory), arrays, task.rows)


def bytes_of(call: Call, mesh: Mesh, programs: Programs) -> int:
    """That a task takes on each device at its peak: what stays there, and the most that one of its
    programs needs beside that."""
    one = jnp.int32(1)
    static, before, state, own, arrays, rows = call
    steps = Steps(arrays, one, one)
    while_fitting = [
        programs.fit_steps.lower(static, state, own, steps),
        programs.render.lower((static.field, rows), state.params, own.scan, arrays.stop_seen),
    ]
    if static.strategy.acts:
        while_fitting.append(programs.penalty_share.lower(static, state, own, steps))
    peak = _bytes((state, own)) // mesh.devices.size + max(map(_beside, while_fitting))
    if static.strategy.begin:
        begin = programs.begin_task.lower(static, before[:2], own.scan, arrays)
        peak = max(peak, _bytes((before, own.scan)) // mesh.devices.size + _beside(begin))
    return peak


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _beside(lowered: jax.stages.Lowered) -> int:
    """Bytes of results and of what is in between, without results in the place of arguments."""
    memory = lowered.compile().memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + results
