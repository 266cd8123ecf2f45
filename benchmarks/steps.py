"""How long a step takes, and how fast this machine multiplies the same matrices."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nfcl_jax.arguments import ScanAndMemory, Steps
from nfcl_jax.batch_task import STEPS_PER_CHUNK, BatchTask, task_arguments
from nfcl_jax.batching import (
    compile_for,
    compiler_options,
    device_mesh,
    fits_at_once,
    make_batches,
)
from nfcl_jax.config import make_config
from nfcl_jax.fields import FIELDS, create_field, init_params
from nfcl_jax.fitting import start_batch
from nfcl_jax.plan import flops_of_a_point, scans_at_once
from nfcl_jax.records import Learned
from nfcl_jax.runner import recipe_of
from nfcl_jax.scan import Scan
from nfcl_jax.scenarios import num_channels, tasks_of
from nfcl_jax.strategies import create_strategy

Run = Callable[[int], None]  # does so many steps, and returns when they are done


class Case(NamedTuple):
    """What is timed: the steps of task `task`, from 1, of so many patients. The strategy may be
    "distillation_voxels", with `distillation.points` so."""

    field: str
    strategy: str
    scenario: str
    points: int
    patients: int
    task: int


def config_of(case: Case) -> dict[str, Any]:
    """The config of a run that takes these steps."""
    strategy, _, points = case.strategy.partition("_")
    config = make_config(case.scenario, case.field, strategy)
    config["batch_size"] = case.points
    if points:
        config[strategy]["points"] = points
    return config


def layer_sizes(case: Case, config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Inputs and outputs of each matrix product of the field."""
    tasks = tasks_of(config)[: case.task]
    axes = 4 if case.scenario == "domain_expansion" else 3
    field = create_field(config["field"], num_channels(tasks), rows=1)
    init = functools.partial(init_params, field, axes=axes)
    params = jax.eval_shape(init, jax.random.key(0))["params"]
    layers = [*(f"hidden_{i}" for i in range(field.depth)), "output"]
    return [params[layer]["kernel"].shape for layer in layers]


def points_asked(case: Case) -> int:
    """Points that the student is asked in a step."""
    config = config_of(case)
    strategy = create_strategy(config["strategy"], config.get(config["strategy"], {}))
    return int(case.points * (strategy.cost if case.task > 1 else 1))


def flops(case: Case, sizes: list[tuple[int, int]]) -> int:
    """Of a step's matrix products."""
    return points_asked(case) * flops_of_a_point(sizes, FIELDS[case.field].on_grid)


def our_steps(
    case: Case, scans: Sequence[Scan], per_batch: int | None, config: dict[str, Any] | None = None
) -> tuple[Run, int, int]:
    """The steps of a run as `experiments.train` makes it, by another config than the case's if one
    is given, the bytes that they take, and how many patients a device fits at once."""
    config = config or config_of(case)
    tasks, recipe = tasks_of(config), recipe_of(config)
    mesh = device_mesh()
    programs = compile_for(mesh)
    own = recipe._replace(scans_per_batch=per_batch)
    count, batches = make_batches(scans, scans_at_once(scans, tasks, own, mesh), mesh)
    calls, states = [], []
    for batch in batches:
        learned: dict[str, Learned] = {}
        for number in range(1, case.task + 1):
            task = BatchTask(batch, count, tasks[:number], recipe, mesh)
            static, padded, arrays = task_arguments(task)
            state, memory = start_batch(task, learned, programs, (static, padded, arrays))
            host = jax.device_get((state.params, state.strategy))
            learned = {
                scan.name: Learned(*jax.tree.map(lambda x, i=i: x[i], host))
                for i, scan in enumerate(batch)
            }
        states.append(state)
        calls.append((static, ScanAndMemory(padded, memory), arrays))

    def run(steps):
        for i, (static, own, arrays) in enumerate(calls):
            for first in range(0, steps, STEPS_PER_CHUNK):
                stop = min(first + STEPS_PER_CHUNK, steps)
                chunk = Steps(arrays, jnp.int32(first), jnp.int32(stop))
                states[i], losses = programs.fit_steps(static, states[i], own, chunk)
            jax.block_until_ready(losses)

    one = Steps(arrays, jnp.int32(0), jnp.int32(1))
    lowered = programs.fit_steps.lower(static, states[-1], calls[-1][1], one)
    memory_of = lowered.compile().memory_analysis()
    taken = memory_of.argument_size_in_bytes + memory_of.temp_size_in_bytes
    taken += memory_of.output_size_in_bytes - memory_of.alias_size_in_bytes
    together = count // mesh.devices.size if fits_at_once(mesh.devices.flat[0]) else 1
    return run, taken, together


def matmul_steps(
    points: int, sizes: list[tuple[int, int]], towards_coords: bool, patients: int = 1
) -> Run:
    """The matrix products of a step of so many patients at once and nothing else: forward, towards
    the weights, and towards the inputs. Each depends on the one before, as in a step, and is
    compiled as there."""
    options = compiler_options(jax.default_backend())

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
    def products(carry, steps):
        def step(_, carry):
            weights, x = carry
            layers = [x]
            for w in weights:
                layers.append(layers[-1] @ w)
            gradient, updates = layers[-1], []
            for i in reversed(range(len(weights))):
                updates.insert(0, layers[i].T @ gradient)
                if i or towards_coords:
                    gradient = gradient @ weights[i].T
            weights = [w + 1e-12 * u for w, u in zip(weights, updates, strict=True)]
            return weights, x

        of_all = jax.vmap(step, in_axes=(None, 0)) if patients > 1 else step
        return jax.lax.fori_loop(0, steps, of_all, carry)

    key, many = jax.random.key(0), (patients,) if patients > 1 else ()
    weights = [jax.random.normal(key, (*many, *size)) / size[0] ** 0.5 for size in sizes]
    carry = [(weights, jax.random.normal(key, (*many, points, sizes[0][0])))]

    def run(steps):
        carry[0] = jax.block_until_ready(products(carry[0], steps))

    return run


def interleave(
    runs: Mapping[Any, Run], rounds: int, seconds: float, fewest: int = 20
) -> dict[Any, list[float]]:
    """Seconds per step of each run in each round. All take their turn in every round, so that what
    else the machine does falls on all of them; each turn lasts about `seconds`, and has at least
    `fewest` steps."""
    steps = {}
    for name, run in runs.items():
        run(2)  # compiles
        started = time.perf_counter()
        run(2)
        steps[name] = max(fewest, round(seconds / ((time.perf_counter() - started) / 2)))
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run(1)  # caches and threads are another's
            started = time.perf_counter()
            run(steps[name])
            times[name].append((time.perf_counter() - started) / steps[name])
    return times


def median_ratio(times: list[float], others: list[float]) -> float:
    """Median over rounds of how much longer `others` took."""
    return statistics.median(b / a for a, b in zip(times, others, strict=True))


def torch_steps(case: Case, scan: Scan, compiled: bool) -> Run:
    """The same steps by PyTorch, which must be installed."""
    from benchmarks import torch_loop

    config = config_of(case)
    field = torch_loop.field_for(scan, config)
    distil = config["strategy"] == "distillation" and case.task > 1
    teacher = torch_loop.frozen(field) if distil else None
    step = torch_loop.task_step(field, teacher, scan, config, case.task, compiled)

    def run(steps):
        for _ in range(steps):
            step()
        torch_loop.wait()

    return run
