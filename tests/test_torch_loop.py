"""The PyTorch loop that the benchmark compares with does the same work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import FIELDS, make_config
from nfcl_jax import fields
from nfcl_jax.coordinates import index_to_coords

torch = pytest.importorskip("torch", reason="pip install -e '.[benchmark]'")
SHAPE = (4, 5, 4, 3)


@pytest.mark.parametrize("name", FIELDS)
def test_the_same_parameters_give_the_same_field(name):
    from experiments import torch_loop

    config = make_config("domain_expansion", f"{name},finetune").field.to_dict()
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
    coords = index_to_coords(jnp.arange(240), jnp.array(SHAPE))
    if name != "diner":
        np.testing.assert_allclose(inputs, coords, atol=1e-6)
    expected = fields.evaluate(ours, {"params": params}, jnp.arange(240), jnp.array(SHAPE))
    np.testing.assert_allclose(torch_loop.render(theirs, inputs), expected, atol=2e-3)


def test_its_steps_learn_the_task_and_distil_the_teacher():
    from experiments import torch_loop

    config = make_config("domain_expansion", "siren,distillation").field.to_dict()
    inputs = torch_loop.voxel_inputs("siren", SHAPE)
    values = torch.linspace(0, 1, 240)[:, None]
    field = torch_loop.make_field(config, 4, 1, 240)
    teacher = torch_loop.frozen(field)
    step = torch_loop.make_step(
        field, teacher, inputs, values, (60, 120), (0, 60), 64, 1e-3, 1.0, compiled=False
    )
    for _ in range(200):
        step()
    learned, taught = (torch_loop.render(f, inputs)[:, 0] for f in (field, teacher))
    assert np.abs(learned[60:120] - values[60:120, 0].numpy()).mean() < 0.05
    assert np.abs(learned[:60] - taught[:60]).mean() < 0.05
    assert np.abs(learned[120:] - taught[120:]).mean() > 0.1
