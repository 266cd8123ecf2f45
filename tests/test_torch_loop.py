"""The PyTorch loop that the benchmark compares with does the same work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfcl_jax import fields
from nfcl_jax import params as parameters
from nfcl_jax.config import make_config
from nfcl_jax.points import VoxelGrid, index_to_coords

torch = pytest.importorskip("torch", reason="pip install -e '.[benchmark]'")
SHAPE = (4, 5, 4, 3)


@pytest.mark.parametrize("name", ["pe_relu", "siren", "finer", "diner"])
def test_the_same_parameters_give_the_same_field(name):
    from benchmarks import torch_loop

    config = make_config("domain_expansion", name, "finetune")["field"]
    ours = fields.create_field(config, 1, rows=240)
    params = fields.init_params(ours, jax.random.key(0), axes=4)["params"]
    theirs = torch_loop.make_field(config, 4, 1, 240)
    dense = [layer for layer in theirs if isinstance(layer, torch.nn.Linear)]
    layers = [*(params[f"hidden_{i}"] for i in range(3)), params["output"]]
    with torch.no_grad():
        for layer, values in zip(dense, layers, strict=True):
            layer.weight.copy_(torch.tensor(np.array(values["kernel"].T)))
            layer.bias.copy_(torch.tensor(np.array(values["bias"])))
        if name == "diner":
            theirs[0].table.copy_(torch.tensor(np.array(params["table"])))
    inputs = torch_loop.voxel_inputs(name, SHAPE)
    coords = index_to_coords(jnp.arange(240), VoxelGrid(jnp.array(SHAPE)))
    if name != "diner":
        np.testing.assert_allclose(inputs, coords, atol=1e-6)
    expected = parameters.evaluate(
        ours, {"params": params}, jnp.arange(240), VoxelGrid(jnp.array(SHAPE))
    )
    np.testing.assert_allclose(torch_loop.render(theirs, inputs), expected, atol=2e-3)


def test_its_steps_learn_the_task_and_distil_the_teacher():
    from benchmarks import torch_loop

    config = make_config("domain_expansion", "siren", "distillation")["field"]
    inputs = torch_loop.voxel_inputs("siren", SHAPE)
    values = torch.linspace(0, 1, 240)[:, None]
    field = torch_loop.make_field(config, 4, 1, 240)
    teacher = torch_loop.frozen(field)
    data = torch_loop.TaskData(inputs, values, (60, 120), (0, 60))
    step = torch_loop.make_step(field, teacher, data, 64, 1e-3, 1.0, compiled=False)
    for _ in range(200):
        step()
    learned, taught = (torch_loop.render(f, inputs)[:, 0] for f in (field, teacher))
    assert np.abs(learned[60:120] - values[60:120, 0].numpy()).mean() < 0.05
    assert np.abs(learned[:60] - taught[:60]).mean() < 0.05
    assert np.abs(learned[120:] - taught[120:]).mean() > 0.1
