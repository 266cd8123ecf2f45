"""Many scans at once: which go together, and one scan's functions mapped over a batch of them, of
which each device takes its share."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from nfcl_jax import step
from nfcl_jax.params import render
from nfcl_jax.points import num_space_axes
from nfcl_jax.scan import Scan

# How XLA compiles for a CPU. Measured on two cores of an AMD EPYC: Eigen's matrix products take a
# tenth less time than those of its younger rival, which is the default, and vectors of 512 bits,
# where there are any, halve the time of a sine.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_prefer_vector_width": 512}
# Processes compile what each needs: none may wait for others to try matrix products out with it.
# Without Triton's matrix products, of which XLA compiles many to choose from, programs for an H100
# take a quarter of the time, and SIREN's steps in float32 were 4 and 8% faster.
GPU_OPTIONS = {"xla_gpu_shard_autotuning": False, "xla_gpu_enable_triton_gemm": False}
# For what runs once a task: compiled in half the time, to be slower.
QUICK_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of the devices (all of this process, if None) along one axis, over which scans are
    spread. Those of other processes have scans of their own."""
    devices = jax.local_devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), ("scans",), axis_types=(AxisType.Auto,), devices=devices)


def make_batches(
    scans: Sequence[Scan], scans_per_batch: int, mesh: Mesh
) -> tuple[int, list[list[Scan]]]:
    """Scans of similar size together.

    Args:
      scans: of the cohort.
      scans_per_batch: so many at once, rounded up to a multiple of the devices; 0 is all.
      mesh: from `device_mesh`.

    Returns:
      How many scans a batch has room for, and the batches.
    """
    devices = mesh.devices.size
    count = min(scans_per_batch or len(scans), len(scans))
    count = -(-count // devices) * devices
    batches = []
    for space in (2, 3):  # single slices have fields of other coordinates
        own = [scan for scan in scans if num_space_axes(scan.shape) == space]
        own.sort(key=lambda scan: (scan.num_voxels, scan.name))
        batches += [own[i : i + count] for i in range(0, len(own), count)]
    return count, batches


def filled(batch: Sequence[Any], count: int) -> list[Any]:
    """A batch made up to `count` with repetitions, so that it runs in the same program."""
    return [batch[i % len(batch)] for i in range(count)]


@functools.cache
def _has_option(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that XLA has; they come and go with its releases."""
    return {name: value for name, value in options.items() if _has_option(name, value)}


def compiler_options(
    platform: str, cpu_options: Mapping[str, Any] = CPU_OPTIONS
) -> dict[str, Any] | None:
    """How XLA compiles a step for a platform, as `jax.jit` takes it."""
    return known_options({"cpu": cpu_options, "gpu": GPU_OPTIONS}.get(platform, {})) or None


def over_scans(
    function: Callable,
    mesh: Mesh,
    at_once: bool,
    donate: bool = False,
    cpu_options: Mapping = CPU_OPTIONS,
) -> Callable:
    """`function`, written for one scan, over a batch of them.

    Args:
      function: (static, state, scan, shared) -> results; static is hashable, the others pytrees.
      mesh: one axis, "scans"; its size must divide that of the batch.
      at_once: whether a device fits all its scans at once, or one after the other.
      donate: whether the state's buffers are given up for the results.
      cpu_options: how XLA compiles it, if for a CPU.

    Returns:
      The jitted function. State and scan have a leading batch axis, and so has every result.
    """
    spec, platform = PartitionSpec("scans"), mesh.devices.flat[0].platform

    def batched(static, state, scan, shared):
        return jax.shard_map(
            _map_scans(functools.partial(function, static), at_once),
            mesh=mesh,
            in_specs=(spec, spec, PartitionSpec()),
            out_specs=spec,
            check_vma=False,  # the scans never talk to each other
        )(state, scan, shared)

    batched.__name__ = function.__name__  # for profiles, and the log of what is compiled
    return jax.jit(
        batched,
        static_argnums=0,
        donate_argnums=(1,) if donate else (),
        compiler_options=compiler_options(platform, cpu_options),
    )


def _map_scans(one_scan: Callable, at_once: bool) -> Callable:
    """`one_scan` over a batch axis: by vmap, or in a loop.

    In a loop each runs in the very same body, so that a batch of any size gives the same bits;
    batched matrix products round differently for each size, which 500 steps of Adam amplify to
    tenths of a dB.
    """
    if at_once:
        return jax.vmap(one_scan, in_axes=(0, 0, None))

    def one_after_the_other(state, scan, shared):
        return jax.lax.map(lambda own: one_scan(*own, shared), (state, scan))

    return one_after_the_other


def fits_at_once(device: jax.Device) -> bool:
    """Whether a device is faster with several scans at once: one scan fills a CPU."""
    return device.platform != "cpu"


class Programs(NamedTuple):
    """The compiled programs of a run, one scan's functions mapped over a batch."""

    begin_task: Callable
    start_task: Callable
    fit_steps: Callable
    penalty_share: Callable
    curve_error: Callable
    render: Callable


@functools.lru_cache
def compile_for(mesh: Mesh, at_once: bool | None = None) -> Programs:
    """The functions of `step`, and `params.render`, over the scans of a batch on `mesh`, `at_once`
    or one after the other; None is as is faster there."""
    at_once = fits_at_once(mesh.devices.flat[0]) if at_once is None else at_once
    program = functools.partial(over_scans, mesh=mesh, at_once=at_once)
    quick = functools.partial(program, cpu_options=QUICK_OPTIONS)
    return Programs(
        begin_task=program(step.begin_task),
        start_task=quick(step.start_task),
        fit_steps=program(step.fit_steps, donate=True),
        penalty_share=quick(step.penalty_share),
        curve_error=quick(step.curve_error),
        render=program(_render_scan),
    )


def _render_scan(static, params, scan, stop):
    field, num_points = static
    return render(field, params, scan.grid, num_points, stop)
