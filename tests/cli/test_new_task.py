"""`estune new-task` writes a file that runs unchanged and that --task finds, over no other file."""

import json
import shlex
import subprocess
import sys

import pytest

from estune.cli.main import main
from estune.errors import ConfigError
from estune.tasks import get_task


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_task", "broken", "other"):
        sys.modules.pop(name, None)


def test_the_written_test_passes(here):
    assert main(["new-task", "my_task"]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_my_task.py"],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout


def test_the_written_task_gives_rows_and_scores_completions(here, capsys):
    main(["new-task", "my_task"])
    task = get_task("my_task.TASK")
    assert (
        task.name == "my_task"
        and len(task.train(3)) == 3
        and set(task.test(1)[0]) == {"prompt", "answer"}
    )
    rows = [{"completion": "eert", "answer": "eert"}, {"completion": "tree", "answer": "eert"}]
    (here / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["score", "--task", "my_task.TASK", "--completions", "answers.jsonl"]) == 0
    assert capsys.readouterr().out.split() == ["1.0", "0.0"]


def test_the_command_that_it_prints_trains(here, tiny, capsys):
    main(["new-task", "my_task"])
    command = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(command.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny)))[1:]
    small = ["--engine", "fake", "--max_steps", "1", "--population_size", "2"]
    assert (main([*words, *small]), capsys.readouterr().err) == (0, "")
    assert (here / "runs/my_task/checkpoint-1/model.safetensors").is_file()


@pytest.mark.parametrize("there", ["my_task.py", "test_my_task.py"])
def test_nothing_is_overwritten(there, here, capsys):
    (here / there).write_text("mine")
    assert main(["new-task", "my_task"]) == 2
    assert (
        capsys.readouterr().err
        == f"estune: {there}: already exists; choose another name or move it away\n"
    )
    assert [path.name for path in here.iterdir()] == [there] and (
        here / there
    ).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a-b", "not a valid module name"),
        ("../up", "not a valid module name"),
        ("", "not a valid module name"),
        ("class", "not a valid module name"),
        ("café", "not a valid module name"),
        ("json", "a Python module 'json' exists"),
        ("numpy", "a Python module 'numpy' exists"),
    ],
)
def test_a_name_that_could_not_be_imported_is_refused(name, why, here, capsys):
    assert main(["new-task", name]) == 2
    error = capsys.readouterr().err
    assert why in error and error.count("\n") == 1
    assert not list(here.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(here, capsys, monkeypatch):
    monkeypatch.chdir("/proc")
    assert main(["new-task", "my_task"]) == 2
    assert "my_task.py: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        ("", "broken.TASK", "AttributeError"),
        ("1 / 0", "broken.TASK", "ZeroDivisionError"),
        ("raise SystemExit", "broken.TASK", "SystemExit"),
        ("TASK = 7", "broken.TASK", "is a int, not an estune.tasks.Task"),
        ("", "absent.TASK", "ModuleNotFoundError"),
        ("", ".", "cannot import"),
        ("", "..TASK", "cannot import"),
    ],
)
def test_a_dotted_path_without_a_task_is_one_line(text, path, why, here):
    (here / "broken.py").write_text(text)
    with pytest.raises(ConfigError, match=why) as refusal:
        get_task(path)
    assert "\n" not in str(refusal.value)
