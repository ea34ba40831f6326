"""The command line works, or says in one line what is wrong, where, and how to fix it."""

import json
import subprocess
import sys

import pytest
from helpers import make_model

from estune.cli.main import main

REWARDS = """
def short(completions, **columns): return [-len(c) for c in completions]
def breaks(completions, **columns): raise KeyError("gone")
def few(completions, **columns): return [1.0]
def words(completions, **columns): return ["good"] * len(completions)
def needs(completions, answer): return [0.0] * len(completions)
def blind(prompts): return [0.0] * len(prompts)
number = 3
"""


@pytest.fixture
def place(tiny, tmp_path, monkeypatch):
    """A working folder with data, rewards and a model, as a user would have."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny)
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": f"what is {i}", "target": i}) + "\n" for i in range(4))
    )
    (tmp_path / "rewards_of_mine.py").write_text(REWARDS)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the command adds the working folder
    monkeypatch.delitem(sys.modules, "rewards_of_mine", raising=False)
    return tmp_path


BASE = {
    "model_name_or_path": "model",
    "dataset_name": "data.jsonl",
    "reward_funcs": "rewards_of_mine.short",
    "engine": "fake",
    "population_size": "4",
    "max_steps": "2",
    "sigma": "0.01",
    "output_dir": "out",
}


def train(*more, **settings):
    flags = [
        word
        for name, value in (BASE | settings).items()
        if value is not None
        for word in (f"--{name}", value)
    ]
    return main(["train", *flags, *more])


def refused(capsys, status):
    """The one line on standard error of a refusal."""
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert status == 2, captured.err
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("estune: ")
    assert "Traceback" not in captured.out
    return lines[0]


def write(place, name, text):
    (place / name).write_text(text)
    return name


WRONG = [
    ({"sigma": "-1"}, "sigma: must be greater than 0"),
    ({"sigma": "0"}, "sigma: must be greater than 0"),
    ({"sigma": "nan"}, "sigma: must be a finite number"),
    ({"sigma": "much"}, "sigma: must be"),
    ({"population_size": "1"}, "population_size: must be at least 2"),
    ({"engine": "warp"}, "engine: must be 'transformers', 'vllm' or 'fake'"),
    ({"max_steps": "2.5"}, "max_steps: must be"),
    ({"model_name_or_path": None}, "model_name_or_path: give"),
    ({"model_name_or_path": "./none"}, "./none: no such folder"),
    ({"model_name_or_path": "someone/none"}, "give a local folder"),
    ({"model_name_or_path": "data.jsonl"}, "neither a folder nor a .gguf"),
    ({"dataset_name": "none.jsonl"}, "none.jsonl"),
    ({"dataset_name": None}, "task: give one"),
    ({"reward_funcs": None}, "reward_funcs: give"),
    ({"reward_funcs": "no_such_module.f"}, "cannot import no_such_module.f"),
    ({"reward_funcs": "rewards_of_mine.none"}, "rewards_of_mine.none"),
    ({"reward_funcs": "rewards_of_mine.number"}, "not a function"),
    ({"reward_funcs": "shorrt"}, "there is no built-in reward 'shorrt'"),
    ({"reward_funcs": "rewards_of_mine.needs"}, "nothing provides its parameter 'answer'"),
    ({"reward_funcs": "rewards_of_mine.blind"}, "takes no 'completions'"),
    ({"reward_funcs": "rewards_of_mine.breaks"}, "breaks raised KeyError"),
    ({"reward_funcs": "rewards_of_mine.few"}, "few returned 1 rewards for 4 completions"),
    ({"reward_funcs": "rewards_of_mine.words"}, "words returned 'good' for completion 0"),
    ({"task": "countdwn"}, "countdown"),
    ({"target_parameters": "("}, "target_parameters"),
    ({"target_parameters": "nothing"}, "target_parameters"),
    ({"output_dir": "data.jsonl/out"}, "output_dir"),
    ({"eval_strategy": "steps"}, "eval_strategy"),
    ({"report_to": "tensorbord"}, "report_to"),
    ({"metric_for_best_model": "reward"}, "metric_for_best_model"),
]


@pytest.mark.parametrize(("settings", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_input_is_one_line_and_status_2(place, capsys, settings, says):
    assert says in refused(capsys, train(**settings))


def test_unknown_flags_and_keys_name_the_nearest_right_one(place, capsys):
    assert "did you mean 'sigma'" in refused(capsys, train("--sigam", "1"))
    assert "did you mean 'population_size'" in refused(
        capsys, train("--config", write(place, "a.yaml", "populaton_size: 4\n"))
    )
    assert "a.yaml" in refused(capsys, train("--config", "a.yaml"))


@pytest.mark.parametrize("text", ["- a list", "sigma: [", "sigma: -3", "just words"])
def test_a_bad_config_file_is_named(place, capsys, text):
    line = refused(capsys, train("--config", write(place, "bad.yaml", text), sigma=None))
    assert "bad.yaml" in line


def test_a_dataset_without_prompts_lists_its_columns(place, capsys):
    write(place, "odd.jsonl", '{"question": "a", "answer": "b"}\n')
    assert "its columns are answer, question" in refused(capsys, train(dataset_name="odd.jsonl"))


@pytest.mark.parametrize("text", ["", '{"prompt": \n', '{"prompt": 3}\n', '{"prompt": []}\n'])
def test_an_empty_or_damaged_dataset_is_refused(place, capsys, text):
    assert "d.jsonl" in refused(capsys, train(dataset_name=write(place, "d.jsonl", text)))


def test_a_model_that_is_no_causal_lm_is_refused(place, capsys):
    folder = make_model(place / "other")
    config = json.loads((folder / "config.json").read_text()) | {
        "architectures": ["LlamaForSequenceClassification"]
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert "no causal language model" in refused(capsys, train(model_name_or_path="other"))


def test_too_little_memory_or_disk_says_how_much_is_needed(place, capsys, monkeypatch):
    with monkeypatch.context() as cramped:
        cramped.setattr("estune.common.resources.available_memory", lambda: 1000)
        assert "are available" in refused(capsys, train())
    monkeypatch.setattr("estune.common.resources.free_disk", lambda folder: 1000)
    assert "are free" in refused(capsys, train())


def test_a_second_run_in_the_folder_is_refused_unless_told_to_resume(place, capsys):
    assert train() == 0
    capsys.readouterr()
    assert "--resume_from_checkpoint true" in refused(capsys, train())
    assert train("--resume_from_checkpoint", "true") == 0
    assert train("--resume_from_checkpoint", "true", max_steps="3") == 0
    capsys.readouterr()
    assert "sigma: the run" in refused(
        capsys, train("--resume_from_checkpoint", "true", sigma="0.5", max_steps="3")
    )


@pytest.mark.slow
def test_a_failed_reward_loses_nothing(place, capsys):
    assert train(reward_funcs="rewards_of_mine.breaks") == 2
    capsys.readouterr()
    source = (
        (place / "rewards_of_mine.py")
        .read_text()
        .replace('raise KeyError("gone")', "return [-len(c) for c in completions]")
    )
    (place / "rewards_of_mine.py").write_text(source)
    del sys.modules["rewards_of_mine"]
    assert train("--resume_from_checkpoint", "true", reward_funcs="rewards_of_mine.breaks") == 0


def test_flags_win_over_the_file_and_the_file_over_the_task(place):
    write(place, "run.yaml", "sigma: 2e-3\nmax_completion_length: 7\nantithetic: yes\n")
    assert (
        train(
            "--config",
            "run.yaml",
            "--max_completion_length",
            "9",
            sigma=None,
            task="conciseness",
            dataset_name=None,
        )
        == 0
    )
    config = json.loads((place / "out" / "journal.jsonl").read_text().splitlines()[0])["config"]
    assert (config["sigma"], config["max_completion_length"], config["antithetic"]) == (
        0.002,
        9,
        True,
    )


def test_the_config_that_a_run_writes_reruns_it(place):
    assert train() == 0
    assert main(["train", "--config", "out/config.yaml", "--output_dir", "again"]) == 0
    assert (place / "out/checkpoint-2/model.safetensors").read_bytes() == (
        place / "again/checkpoint-2/model.safetensors"
    ).read_bytes()


def test_replay_gives_any_step(place, capsys):
    assert train("--save_steps", "1") == 0
    for step in (1, 2):
        assert main(["replay", "out", "--step", str(step), "--output", f"step-{step}"]) == 0
        replayed, saved = (
            place / f"step-{step}" / "model.safetensors",
            place / f"out/checkpoint-{step}" / "model.safetensors",
        )
        assert replayed.read_bytes() == saved.read_bytes()
    capsys.readouterr()
    assert "from 0 to 2" in refused(capsys, main(["replay", "out", "--step", "3", "--output", "x"]))
    assert "exists already" in refused(
        capsys, main(["replay", "out", "--step", "1", "--output", "step-1"])
    )
    assert "the folder of a run" in refused(capsys, main(["replay", "model", "--output", "x"]))


def test_eval_shows_figures_and_writes_answers(place, capsys):
    words = [
        "eval",
        "--model",
        "model",
        "--task",
        "conciseness",
        "--engine",
        "fake",
        "--max_eval_samples",
        "3",
        "--output",
        "a.jsonl",
    ]
    assert main(words) == 0
    assert "eval_correct" in capsys.readouterr().out
    assert [set(json.loads(line)) for line in (place / "a.jsonl").read_text().splitlines()] == [
        {"model", "task", "sample", "length", "prompt", "completion", "reward", "target"}
    ] * 3
    assert "model: give" in refused(capsys, main(["eval", "--task", "conciseness"]))


RIGHT = "so 1+2 </think>\n<answer>1 + 2</answer>"


def test_score_prints_one_reward_a_line_and_nothing_else(place, capsys):
    rows = [
        {"completion": RIGHT, "numbers": [1, 2], "target": 3},
        {"completion": "<answer>1+2</answer>", "numbers": [1, 2], "target": "3.0"},
        {"completion": [{"role": "assistant", "content": RIGHT}], "numbers": [1, 2], "target": 4},
    ]
    write(place, "c.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", "--task", "countdown", "--completions", "c.jsonl"]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line) for line in captured.out.splitlines()] == [1.1, 1.05, 0.1]
    assert captured.err == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "line 1 is not JSON"),
        ('{"numbers": [1]}', "must be a JSON object with 'completion'"),
        ('{"completion": "a"}', "nothing provides its parameter"),
        ('{"completion": "a", "numbers": [1], "target": "x"}', "row 0"),
        ('{"completion": 3, "numbers": [1], "target": 1}', "neither text nor"),
    ],
)
def test_score_refuses_what_it_cannot_read(place, capsys, text, says):
    assert says in refused(
        capsys,
        main(
            ["score", "--task", "countdown", "--completions", write(place, "c.jsonl", text + "\n")]
        ),
    )
    assert "cannot be read" in refused(
        capsys, main(["score", "--task", "countdown", "--completions", "none.jsonl"])
    )


def test_tasks_lists_every_task_with_a_line(capsys):
    from estune.tasks import TASKS

    assert main(["tasks"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][: len(TASKS)] == list(
        TASKS
    )


@pytest.mark.parametrize("command", ["train", "eval", "score", "replay", "tasks", "new-task"])
def test_every_help_teaches(capsys, command):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: estune" in shown
    assert command == "tasks" or f"\n  estune {command} " in shown


def test_the_module_is_the_command_and_a_file_in_the_working_folder_shadows_nothing(place):
    write(place, "numpy.py", "raise RuntimeError('shadowed')\n")
    done = subprocess.run(
        [sys.executable, "-m", "estune", "tasks"], cwd=place, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
