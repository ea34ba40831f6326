"""A file of a run that was damaged is found out: what it held is had from elsewhere, or the resume is refused; never used."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from estune.cli.main import main
from estune.config import RunConfig
from estune.errors import InputError
from estune.journal import Journal

STEPS = 6


@pytest.fixture
def stopped(make_trainer, tmp_path):
    """The folder of a run that was made to step 4 of 6 and saved at 2 and 4, and the bytes that it should end with."""
    make_trainer(output_dir=str(tmp_path / "undisturbed"), max_steps=STEPS).train()
    make_trainer(max_steps=4).train()
    checkpoint = tmp_path / "undisturbed" / f"checkpoint-{STEPS}"
    return tmp_path / "run", {path.name: path.read_bytes() for path in checkpoint.iterdir()}


FILES = ["journal.jsonl", "metrics.jsonl", "config.yaml", "README.md", "theta", "checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_recovered_from_or_refused(make_trainer, stopped, tmp_path, name):
    folder, expected = stopped
    chance, outcomes = random.Random(name), set()
    for _ in range(25):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        files = [path for path in sorted((copy / name).rglob("*")) if path.is_file()] if (copy / name).is_dir() else [copy / name]
        _flip(chance.choice(files), chance)
        try:
            make_trainer(output_dir=str(copy), max_steps=STEPS).train(resume_from_checkpoint=True)
            assert {path.name: path.read_bytes() for path in (copy / f"checkpoint-{STEPS}").iterdir()} == expected
            outcomes.add("recovered")
        except InputError as error:
            outcomes.add("refused" if str(copy) in str(error) and "\n" not in str(error) else str(error))
        shutil.rmtree(copy)
    assert outcomes <= ({"recovered", "refused"} if name == "journal.jsonl" else {"recovered"})


def _flip(path, chance):
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def test_a_last_line_cut_off_at_any_byte_is_done_again(make_trainer, stopped, tmp_path):
    folder, expected = stopped
    journal = folder / "journal.jsonl"
    whole = journal.read_bytes()
    start = whole.rfind(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        journal.write_bytes(whole[:end])
        assert Journal.open(folder).last == 3
    for end in (start, (start + len(whole)) // 2, len(whole) - 1):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        (copy / "journal.jsonl").write_bytes(whole[:end])
        make_trainer(output_dir=str(copy), max_steps=STEPS).train(resume_from_checkpoint=True)
        assert {path.name: path.read_bytes() for path in (copy / f"checkpoint-{STEPS}").iterdir()} == expected
        shutil.rmtree(copy)


# Whatever is typed or written, no traceback reaches the user

FIELDS = sorted(RunConfig.__dataclass_fields__)
WORDS = ["train", "eval", "score", "replay", "tasks", "new-task", "--sigma", "--task", "-x", "--model"]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=3)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=8)), VALUES, max_size=4))
def test_no_yaml_ends_in_a_traceback(tmp_path_factory, capsys, values):
    folder = tmp_path_factory.mktemp("yaml")
    values = {"model_name_or_path": str(folder / "nowhere"), "task": "countdown", "output_dir": str(folder / "out")} | values
    (folder / "run.yaml").write_text(json.dumps(values))
    if values["model_name_or_path"] == str(folder / "nowhere"):  # else a hub would be asked
        assert main(["train", "--config", str(folder / "run.yaml")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("estune: ")
        assert error.count("\n") == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(
        st.one_of(st.sampled_from(["train", "eval", "score", "replay", "tasks", "--sigma", "--task", "-x", "x"]), st.text(max_size=6)),
        max_size=4,
    )
)
def test_no_command_line_ends_in_a_traceback(capsys, words):
    assume(not {"--help", "-h"} & set(words))  # argparse's own
    status = main(words)
    error = capsys.readouterr().err
    assert status in (0, 2)
    assert error.count("\n") == (status == 2)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_no_bytes_make_the_journals_reader_raise_anything_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("journal")
    (folder / "journal.jsonl").write_bytes(data)
    with pytest.raises(InputError):
        Journal.open(folder)


@pytest.mark.slow
def test_a_minute_of_fuzzing_finds_nothing():
    pytest.importorskip("atheris")
    fuzz = Path(__file__).with_name("fuzz.py")
    done = subprocess.run([sys.executable, str(fuzz), "60"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done" in done.stderr
