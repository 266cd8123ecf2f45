"""The compiled programs of a run: one patient's functions mapped over a batch, of which each device
takes its share."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from nfcl_jax import fields, training

# How XLA compiles for a CPU. Measured on two cores of an AMD EPYC: Eigen's matrix products take a
# tenth less time than those of its younger rival, which is the default, and vectors of 512 bits,
# where there are any, halve the time of a sine.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_prefer_vector_width": 512}
# For what runs once a task: compiled in half the time, to be slower.
QUICK_OPTIONS = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def over_patients(
    function: Callable,
    mesh: Mesh,
    num_static: int,
    mapped: tuple[bool, ...],
    cpu_options: Mapping[str, Any] = CPU_OPTIONS,
    **jit,
) -> Callable:
    """`function`, written for one patient, over a batch of them.

    Args:
      function: its first arguments are hashable, the others pytrees.
      mesh: one axis, "patients"; its size must divide that of the batch.
      num_static: how many hashable arguments there are.
      mapped: for each pytree argument, whether it has a leading batch axis.
      cpu_options: how XLA compiles it, if for a CPU.
      **jit: further arguments of `jax.jit`.

    Returns:
      The jitted function; every result has a leading batch axis.
    """
    spec = PartitionSpec("patients")

    def batched(*arguments):
        static, arrays = arguments[:num_static], arguments[num_static:]
        one_patient = functools.partial(function, *static)
        on_device = _map_patients(one_patient, mapped, mesh.devices.flat[0].platform)
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=tuple(spec if m else PartitionSpec() for m in mapped),
            out_specs=spec,
            check_vma=False,  # the patients never talk to each other
        )(*arrays)

    batched.__name__ = function.__name__  # for profiles, and the log of what is compiled
    options = dict(cpu_options) if mesh.devices.flat[0].platform == "cpu" else None
    static = tuple(range(num_static))
    return jax.jit(batched, static_argnums=static, compiler_options=options, **jit)


def _map_patients(one_patient: Callable, mapped: tuple[bool, ...], platform: str) -> Callable:
    """`one_patient` over a batch axis: vmap on accelerators, one after the other on a CPU.

    A CPU is filled by one patient. Each then runs in the very same loop body, so that a batch of
    any size gives the same bits; batched matrix products round differently for each size, which
    500 steps of Adam amplify to tenths of a dB.
    """
    if platform != "cpu":
        return jax.vmap(one_patient, in_axes=tuple(0 if m else None for m in mapped))

    def one_after_the_other(*arrays):
        def with_shared(batched):
            own = iter(batched)
            return one_patient(
                *(next(own) if m else x for x, m in zip(arrays, mapped, strict=True))
            )

        return jax.lax.map(with_shared, [x for x, m in zip(arrays, mapped, strict=True) if m])

    return one_after_the_other


class Programs(NamedTuple):
    """The compiled programs of a run, one patient's functions mapped over a batch."""

    start_task: Callable
    remember: Callable
    fit_steps: Callable
    penalty_share: Callable
    render: Callable


@functools.lru_cache
def compile_for(mesh: Mesh) -> Programs:
    """The functions of `training`, and `fields.render`, over the patients of a batch on `mesh`."""
    program = functools.partial(over_patients, mesh=mesh)
    quick = functools.partial(program, cpu_options=QUICK_OPTIONS)
    return Programs(
        start_task=quick(training.start_task, num_static=2, mapped=(True, True, False)),
        remember=program(training.remember, num_static=2, mapped=(True, True, False, False)),
        fit_steps=program(
            training.fit_steps,
            num_static=3,
            mapped=(True, True, True, False, False, False),
            donate_argnums=(3,),
        ),
        penalty_share=quick(
            training.penalty_share, num_static=2, mapped=(True, True, True, False, False)
        ),
        render=program(_render_patient, num_static=2, mapped=(True, True, False)),
    )


def _render_patient(field, num_points, params, patient, stop):
    return fields.render(field, params, patient.shape, num_points, stop)
