"""How long a step takes, and how fast this machine multiplies the same matrices."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs.base import make_config
from nfcl_jax import continual
from nfcl_jax.programs import CPU_OPTIONS, compile_for
from nfcl_jax.scenarios import SCENARIOS, Scan
from nfcl_jax.strategies import create_strategy

Run = Callable[[int], None]  # does so many steps, and returns when they are done


class Case(NamedTuple):
    """What is timed: the steps of task `task`, from 1, of so many patients. The strategy may be
    "distillation_shared", with `distillation.points` so."""

    field: str
    strategy: str
    scenario: str
    points: int
    patients: int
    task: int


def config_of(case: Case) -> ConfigDict:
    """The config of a run that takes these steps."""
    strategy, _, points = case.strategy.partition("_")
    config = make_config(case.scenario, f"{case.field},{strategy}")
    config.batch_size = case.points
    if points:
        config.distillation.points = points
    return config


def layer_sizes(case: Case, config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Inputs and outputs of each matrix product of the field."""
    axes = 4 if case.scenario == "domain_expansion" else 3
    inputs = {"pe_relu": 2 * axes * config.get("num_frequencies", 0), "diner": 1}
    sizes = [inputs.get(case.field, axes), *[config["width"]] * config["depth"]]
    channels = 1 if case.scenario == "domain_expansion" or case.task == 1 else 5
    return list(zip(sizes, [*sizes[1:], channels], strict=True))


def points_asked(case: Case) -> int:
    """Points that the student is asked in a step."""
    return case.points * (2 if case.strategy == "distillation" and case.task > 1 else 1)


def flops(case: Case, sizes: list[tuple[int, int]]) -> int:
    """Floating-point operations of a step's matrix products, two for each multiplication: forward,
    towards the weights, and towards the inputs of all layers but those that take coordinates."""
    forward = sum(inputs * outputs for inputs, outputs in sizes)
    towards_inputs = forward if case.field == "diner" else forward - np.prod(sizes[0])
    return int(2 * points_asked(case) * (2 * forward + towards_inputs))


def our_steps(case: Case, scans: Sequence[Scan], per_batch: int | None) -> tuple[Run, int]:
    """The steps of a run as `experiments.train` makes it, and the bytes that they take."""
    config = config_of(case)
    tasks = SCENARIOS[case.scenario](config.huber_delta)
    strategy = create_strategy(config.strategy, dict(config.get(config.strategy, {})))
    settings = continual.Settings(
        config.learning_rate, config.num_steps, case.points, per_batch, config.seed
    )
    mesh = continual.device_mesh()
    programs = compile_for(mesh)
    count, batches = continual.make_batches(scans, per_batch, case.points, mesh)
    runs, states = [], []
    for batch in batches:
        state = memory = None
        for learned in range(1, case.task + 1):
            arguments = continual.task_arguments(
                batch, count, tasks[:learned], config.field.to_dict(), strategy, settings
            )
            before = state and state.params
            patients, task_arrays = arguments.patients, arguments.task_arrays
            constants = arguments.config, arguments.outputs
            if arguments.outputs.earlier:
                stop = jnp.int32(arguments.stop_earlier)
                memory = programs.remember(*constants, before, patients, task_arrays, stop)
            state = programs.start_task(*constants, before, patients, task_arrays)
        first = continual.STEPS_PER_CHUNK
        program = functools.partial(programs.fit_steps, arguments.config, arguments.outputs, first)
        states.append(state)
        runs.append((program, memory, patients, task_arrays))

    def run(steps):
        for i, (program, *arrays) in enumerate(runs):
            for start in range(0, steps, continual.STEPS_PER_CHUNK):
                stop = min(start + continual.STEPS_PER_CHUNK, steps)
                states[i], losses = program(states[i], *arrays, jnp.int32(start), jnp.int32(stop))
            jax.block_until_ready(losses)

    program, memory, patients, task_arrays = runs[-1]
    lowered = programs.fit_steps.lower(
        arguments.config, arguments.outputs, first, state, memory, patients, task_arrays,
        jnp.int32(0), jnp.int32(1),
    )  # fmt: skip
    memory_of = lowered.compile().memory_analysis()
    taken = memory_of.argument_size_in_bytes + memory_of.temp_size_in_bytes
    return run, taken + memory_of.output_size_in_bytes - memory_of.alias_size_in_bytes


def matmul_steps(points: int, sizes: list[tuple[int, int]], towards_coords: bool) -> Run:
    """The matrix products of a step and nothing else: forward, towards the weights, and towards
    the inputs. Each depends on the one before, as in a step, and is compiled as there."""
    options = CPU_OPTIONS if jax.default_backend() == "cpu" else None

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

        return jax.lax.fori_loop(0, steps, step, carry)

    key = jax.random.key(0)
    weights = [jax.random.normal(key, size) / size[0] ** 0.5 for size in sizes]
    carry = [(weights, jax.random.normal(key, (points, sizes[0][0])))]

    def run(steps):
        carry[0] = jax.block_until_ready(products(carry[0], steps))

    return run


def interleave(runs: Mapping[str, Run], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per step of each run in each round. All take their turn in every round, so that what
    else the machine does falls on all of them; each turn lasts about `seconds`."""
    steps = {}
    for name, run in runs.items():
        run(2)  # compiles
        started = time.perf_counter()
        run(4)
        steps[name] = max(20, round(seconds / ((time.perf_counter() - started) / 4)))
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
    """The same steps by PyTorch, which must be installed; distillation has its own points."""
    from experiments import torch_loop

    config = config_of(case)
    field = torch_loop.field_for(scan, config)
    distil = config.strategy == "distillation" and case.task > 1
    teacher = torch_loop.frozen(field) if distil else None
    step = torch_loop.task_step(field, teacher, scan, config, case.task, compiled)

    def run(steps):
        for _ in range(steps):
            step()

    return run
