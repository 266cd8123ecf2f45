"""Commands as a user gives them."""

from commands import command

from nfcl_jax.data.cohorts import read_scans


def test_errors_on_the_command_line_are_one_message_and_no_traceback(tmp_path):
    start = ("experiments.train", f"--workdir={tmp_path / 'run'}")
    for arguments, message in [
        (("--config=configs/domain_expansion.py:wire,finetune",), "FIELD one of pe_relu, siren"),
        (
            ("--config=configs/domain_expansion.py:siren,finetune", "--config.data.root=/nowhere"),
            "/nowhere: no such folder",
        ),
        (("--config=configs/nothing.py:siren,finetune",), "nothing.py"),
        (
            ("--config=configs/domain_expansion.py:siren,finetune", "--config.num_stepz=3"),
            "num_steps",
        ),
        (
            ("--config=configs/domain_expansion.py:siren,finetune", "--config.num_steps=many"),
            "--config.num_steps=many",
        ),
    ]:
        done = command(*start, *arguments)
        assert done.returncode != 0
        assert message in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


def test_make_phantom_writes_a_cohort_that_trains(tmp_path):
    done = command("experiments.make_phantom", f"--out={tmp_path}", "--num_patients=2")
    assert done.returncode == 0, done.stderr
    assert len(read_scans(tmp_path, "domain_expansion")) == 2


SIREN = ("--config=configs/domain_expansion.py:siren,finetune", "--config.num_steps=0")
OWN = """
from nfcl_jax.fields import FIELDS
from nfcl_jax.fields import SIREN

class Mine(SIREN):
    pass

FIELDS["mine"] = Mine
"""


def test_a_file_of_ones_own_is_loaded_before_the_flags_are_read(tmp_path):
    """Wherever it stands; num_steps=0 ends the command before anything is done."""
    own = tmp_path / "own.py"
    own.write_text(OWN)
    config, end = "--config=configs/domain_expansion.py:mine,finetune", "--config.num_steps=0"
    start = ("experiments.train", f"--workdir={tmp_path / 'run'}")
    for words in ([f"--extend={own}", config, end], [config, end, "--extend", str(own)]):
        done = command(*start, *words)
        assert done.returncode == 2 and "num_steps must be at least 1" in done.stderr, done.stderr
    done = command(*start, config, end)
    assert done.returncode == 2 and "FIELD one of pe_relu" in done.stderr


def test_a_file_of_ones_own_that_cannot_be_loaded_is_one_message(tmp_path):
    start = ("experiments.train", f"--workdir={tmp_path / 'run'}", *SIREN)
    own = tmp_path / "own.py"
    for contents, message in ((None, "FileNotFoundError"), ("x = nothing", "NameError: name")):
        if contents:
            own.write_text(contents)
        done = command(*start, f"--extend={own}")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: --extend={own}: {message}"), done.stderr
        assert "Traceback" not in done.stderr
