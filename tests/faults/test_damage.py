"""A damaged file of a run is detected and never used.

The run takes the content from elsewhere, or refuses to resume.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from estune.cli.main import main
from estune.config import RunConfig
from estune.errors import InputError, JournalError
from estune.theta.journal import Journal

STEPS = 6


CHOOSES = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_on_start": True,
    "metric_for_best_model": "reward",
}


@pytest.fixture
def stopped(make_trainer, tmp_path, request):
    """Return the folder of a run stopped at step 4 of 6, saved at 2 and 4, and its expected end."""
    settings = getattr(request, "param", {})
    make_trainer(output_dir=str(tmp_path / "undisturbed"), max_steps=STEPS, **settings).train()
    make_trainer(max_steps=4, **settings).train()
    checkpoint = tmp_path / "undisturbed" / f"checkpoint-{STEPS}"
    return tmp_path / "run", {path.name: path.read_bytes() for path in checkpoint.iterdir()}


FILES = [
    "journal.jsonl",
    "metrics.jsonl",
    "config.yaml",
    "README.md",
    "theta",
    "checkpoint-2",
    "checkpoint-4",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_recovered_from_or_refused(make_trainer, stopped, tmp_path, name):
    outcomes = _outcomes(make_trainer, stopped, tmp_path, name)
    assert outcomes <= ({"recovered", "refused"} if name == "journal.jsonl" else {"recovered"})


@pytest.mark.parametrize("stopped", [CHOOSES], indirect=True, ids=["chooses"])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [("metrics.jsonl", {"recovered", "refused"}), ("completions", {"recovered"})],
)
def test_a_flipped_bit_does_not_change_which_checkpoint_is_the_best(
    make_trainer, stopped, tmp_path, name, wanted
):
    assert (
        _outcomes(make_trainer, stopped, tmp_path, name, **CHOOSES, num_completions_to_print=1)
        == wanted
    )


def _outcomes(make_trainer, stopped, tmp_path, name, **settings):
    """What became of resumes after a bit of the file, or of one in the folder, flipped."""
    folder, expected = stopped
    chance, outcomes = random.Random(name), set()
    for _ in range(25):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        files = (
            [path for path in sorted((copy / name).rglob("*")) if path.is_file()]
            if (copy / name).is_dir()
            else [copy / name]
        )
        _flip(chance.choice(files), chance)
        try:
            make_trainer(output_dir=str(copy), max_steps=STEPS, **settings).train(
                resume_from_checkpoint=True
            )
            assert {
                path.name: path.read_bytes() for path in (copy / f"checkpoint-{STEPS}").iterdir()
            } == expected
            outcomes.add("recovered")
        except InputError as error:
            outcomes.add(
                "refused"
                if str(copy / name) in str(error) and "\n" not in str(error)
                else str(error)
            )
        shutil.rmtree(copy)
    return outcomes


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
        assert {
            path.name: path.read_bytes() for path in (copy / f"checkpoint-{STEPS}").iterdir()
        } == expected
        shutil.rmtree(copy)


# Metrics: what an evaluation measured stands nowhere else


def _damaged(folder, line):
    """Change a figure of one line of metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"num_tokens": ', b'"num_tokens": 1')
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))


def _records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stopped", [CHOOSES], indirect=True, ids=["chooses"])
def test_a_damaged_evaluation_stops_a_run_that_needs_it_until_its_line_is_deleted(
    make_trainer, stopped
):
    folder, _ = stopped
    _damaged(folder, line=4)
    metrics = (folder / "metrics.jsonl").read_bytes()
    named = (
        r"metrics\.jsonl: line 4 is damaged, .* needs the evaluation of step 3 in it; "
        r"restore the file .*, or delete the line"
    )
    with pytest.raises(JournalError, match=named):
        make_trainer(max_steps=STEPS, **CHOOSES).train(resume_from_checkpoint=True)
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    (folder / "metrics.jsonl").write_bytes(
        b"".join(metrics.splitlines(keepends=True)[:3] + metrics.splitlines(keepends=True)[4:])
    )
    make_trainer(max_steps=STEPS, **CHOOSES).train(resume_from_checkpoint=True)
    assert [record["step"] for record in _records(folder)] == [0, 1, 2, 3, 4, 5, 6]
    assert ["eval_reward" in record for record in _records(folder)] == [
        True,
        True,
        True,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("stopped", [CHOOSES], indirect=True, ids=["chooses"])
def test_a_damaged_last_evaluation_is_made_again(make_trainer, stopped, caplog):
    folder, expected = stopped
    before = _records(folder)
    _damaged(folder, line=5)
    make_trainer(max_steps=STEPS, **CHOOSES).train(resume_from_checkpoint=True)
    assert {
        path.name: path.read_bytes() for path in (folder / f"checkpoint-{STEPS}").iterdir()
    } == expected
    assert _records(folder)[4]["eval_reward"] == before[4]["eval_reward"]
    assert any(
        "metrics.jsonl: line 5 is damaged" in record.getMessage() for record in caplog.records
    )


def test_figures_of_training_in_a_damaged_line_are_had_from_the_journal(
    make_trainer, stopped, caplog
):
    folder, _ = stopped
    before = _records(folder)
    _damaged(folder, line=2)
    make_trainer(max_steps=STEPS).train(resume_from_checkpoint=True)
    assert _records(folder)[:4] == before
    assert any(
        "metrics.jsonl: line 2 is damaged; its figures are taken from the journal"
        in record.getMessage()
        for record in caplog.records
    )


def test_metrics_without_checksums_of_an_older_run_are_read_and_get_them(
    make_trainer, stopped, caplog
):
    folder, expected = stopped
    signed = _records(folder)
    plain = [
        {name: value for name, value in record.items() if name != "checksum"} for record in signed
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in plain))
    make_trainer(max_steps=STEPS).train(resume_from_checkpoint=True)
    assert {
        path.name: path.read_bytes() for path in (folder / f"checkpoint-{STEPS}").iterdir()
    } == expected
    assert _records(folder)[:4] == signed
    assert not caplog.records


def test_a_line_of_metrics_ends_with_a_checksum_of_the_rest_that_the_trainer_keeps_to_itself(
    make_trainer,
):
    trainer = make_trainer()
    output = trainer.train()
    *_, last = _records(trainer.folder.path)
    assert list(last)[-1] == "checksum"
    assert output.metrics == {
        name: value for name, value in last.items() if name not in ("step", "checksum")
    }


# Whatever is typed or written, no traceback reaches the user

FIELDS = sorted(RunConfig.__dataclass_fields__)
WORDS = [
    "train",
    "eval",
    "score",
    "replay",
    "tasks",
    "new-task",
    "--sigma",
    "--task",
    "-x",
    "--model",
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    values=st.dictionaries(
        st.one_of(st.sampled_from(FIELDS), st.text(max_size=8)), VALUES, max_size=4
    )
)
@example(values={"max_train_samples": 10**20})
def test_no_yaml_ends_in_a_traceback(tmp_path_factory, capsys, values):
    folder = tmp_path_factory.mktemp("yaml")
    values = {
        "model_name_or_path": str(folder / "nowhere"),
        "task": "countdown",
        "output_dir": str(folder / "out"),
    } | values
    (folder / "run.yaml").write_text(json.dumps(values))
    if values["model_name_or_path"] == str(folder / "nowhere"):  # else a hub would be asked
        assert main(["train", "--config", str(folder / "run.yaml")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("estune: ")
        assert error.count("\n") == 1


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    words=st.lists(
        st.one_of(
            st.sampled_from(
                ["train", "eval", "score", "replay", "tasks", "--sigma", "--task", "-x", "x"]
            ),
            st.text(max_size=6),
        ),
        max_size=4,
    )
)
def test_no_command_line_ends_in_a_traceback(capsys, words):
    assume(not {"--help", "-h"} & set(words))  # argparse's own
    status = main(words)
    error = capsys.readouterr().err
    assert status in (0, 2)
    assert error.count("\n") == (status == 2)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_no_bytes_make_the_journals_reader_raise_anything_else(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("journal")
    (folder / "journal.jsonl").write_bytes(data)
    with pytest.raises(InputError):
        Journal.open(folder)


@pytest.mark.slow
def test_twenty_seconds_of_fuzzing_find_nothing():
    pytest.importorskip("atheris")
    fuzz = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, str(fuzz), "20"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done" in done.stderr
