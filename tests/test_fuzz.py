"""Whatever is read from outside either can be used or is refused in the project's own words."""

import gzip
import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_runs import STORED

import nfcl_jax
from configs import domain_expansion
from configs.base import get_config
from nfcl_jax.config import check_config
from nfcl_jax.data.acdc import read_cine, read_info
from nfcl_jax.errors import ConfigError, DataError, RunError
from nfcl_jax.fields import FIELDS
from nfcl_jax.scenarios import SCENARIOS
from nfcl_jax.strategies import STRATEGIES

# Derandomised: the same examples in every run, so that a failure is one of this commit.
many = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def cine(phantom_root):
    return gzip.decompress((phantom_root / "patient001/patient001_4d.nii.gz").read_bytes())


def assert_usable_or_refused(contents):
    with tempfile.TemporaryDirectory() as folder:
        patient = Path(folder) / "patient001"
        patient.mkdir()
        (patient / "patient001_4d.nii.gz").write_bytes(contents)
        try:
            scan = read_cine(patient, 4)
        except DataError as error:
            assert str(error).startswith(f"{patient}/patient001_4d.nii.gz: ")
            return
    assert scan.intensities.min() == 0 and scan.intensities.max() == 1
    assert np.isfinite(scan.intensities).all() and min(scan.spacing) > 0


@many
@given(places=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), max_size=12))
def test_altered_nifti_headers(cine, places):
    data = bytearray(cine)
    for place, value in places:
        data[place] = value
    assert_usable_or_refused(gzip.compress(bytes(data), compresslevel=1))


@many
@given(place=st.integers(0, 2000), length=st.integers(0, 5000))
def test_cut_and_altered_gzip_files(cine, place, length):
    packed = bytearray(gzip.compress(cine[:20_000], compresslevel=1))
    packed[place % len(packed)] ^= 255
    assert_usable_or_refused(bytes(packed[:length]))


@many
@given(text=st.text(max_size=60) | st.from_regex(r"(ED|ES|NbFrame): ?-?[0-9]{0,6}\n(ES: 2)?"))
def test_any_info(text):
    with tempfile.TemporaryDirectory() as folder:
        patient = Path(folder) / "patient001"
        patient.mkdir()
        (patient / "Info.cfg").write_text(text, errors="replace")
        try:
            info = read_info(patient)
        except DataError as error:
            assert str(error).startswith(f"{patient}/Info.cfg")
            return
    assert int(info["ED"]) >= 1 and int(info["ES"]) >= 1


words = st.text(max_size=20) | st.sampled_from([*FIELDS, *STRATEGIES, ""])


@many
@given(words=st.lists(words, max_size=4))
def test_any_argument_of_a_config_file(words):
    try:
        config = domain_expansion.get_config(",".join(words))
    except ConfigError as error:
        assert "FIELD,STRATEGY" in str(error)
        return
    assert [config.field.name, config.strategy] == ",".join(words).split(",")
    check_config(config.to_dict())


numbers = st.integers() | st.floats()


@many
@given(
    scenario=st.sampled_from(sorted(SCENARIOS)),
    field=st.sampled_from(sorted(FIELDS)),
    name=st.sampled_from(
        [
            "seed",
            "num_steps",
            "batch_size",
            "learning_rate",
            "huber_delta",
            "field.width",
            "field.depth",
            "scans_per_batch",
            "checkpoint_every_steps",
            "distillation.weight",
        ]
    ),
    value=numbers,
)
def test_any_number_in_a_config(scenario, field, name, value):
    config = get_config(scenario, f"{field},distillation")
    try:
        config.update_from_flattened_dict({name: value})
    except TypeError:
        return  # a float where a whole number belongs: ml_collections refuses it
    try:
        check_config(config.to_dict())
    except ConfigError as error:
        assert str(error).startswith(f"config.{name} must be ")
        return
    assert value >= 0


values = (
    st.none() | st.booleans() | numbers | st.text(max_size=9) | st.lists(st.integers(), max_size=4)
)


@settings(many, max_examples=100)
@given(
    name=st.sampled_from(["config.json", "patients.json"]),
    place=st.integers(0, 10**6),
    value=values | st.just({}) | st.sampled_from([10**30, -(10**400), [[1.0]], "siren", "../a"]),
)
def test_any_value_in_a_runs_files(name, place, value):
    """It is told by its type, its range, or the checkpoint; or the field is what it was."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(STORED, folder, dirs_exist_ok=True)
        contents = json.loads((Path(folder) / name).read_text())
        owner, key = [*places(contents)][place % len([*places(contents)])]
        owner[key] = value
        (Path(folder) / name).write_text(json.dumps(contents))
        try:
            run = nfcl_jax.open_run(folder)
            found = repr(run) and run.params("patient002", 4)
        except RunError:
            return
        except ValueError as error:
            assert "unknown" in str(error)  # the name of a field or a scenario
            return
        except KeyError:  # a patient who has another name now
            assert owner is contents[1] and key in ("patient", "image")
            return
    jax.tree.map(np.testing.assert_array_equal, found, EXPECTED.params("patient002", 4))


EXPECTED = nfcl_jax.open_run(STORED)


def places(tree):
    """Each dictionary or list within, with each of its keys."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from places(value)
