"""The commands resume, replay, eval and score. No input ends in a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import BARE, COUNTDOWN, FULL, contents, lines, module, train_on
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estune.cli.main import main
from estune.config import RunConfig
from estune.tasks import TASKS

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


# a folder that holds a run


def test_a_second_run_in_the_same_folder_is_refused_with_the_way_to_go_on(
    mini, data, refused, capsys
):
    assert main(train_on(mini, data)) == 0
    capsys.readouterr()
    before = contents(Path("out/checkpoint-2"))
    message = refused(*train_on(mini, data))
    assert (
        "output_dir: out holds a run already; "
        "add --resume_from_checkpoint true to continue it, or choose another" in message
    )
    assert contents(Path("out/checkpoint-2")) == before


def test_a_resume_with_another_setting_names_it(mini, data, capsys):
    assert main(train_on(mini, data)) == 0
    capsys.readouterr()
    assert main(train_on(mini, data, "--resume_from_checkpoint", "true", "--sigma", "0.5")) == 2
    assert capsys.readouterr().err.startswith("estune: sigma: the run in out has 0.02, not 0.5")


# replay


@pytest.mark.parametrize("step", [1, 2, 3])
def test_replay_writes_the_same_bytes_as_the_runs_checkpoint(step, finished, capsys):
    assert main(["replay", str(finished), "--step", str(step), "--output", "again"]) == 0
    out, err = capsys.readouterr()
    assert f"step {step} of {finished} is in again" in out
    assert err == ""
    again, saved = contents(Path("again")), contents(finished / f"checkpoint-{step}")
    assert saved.pop("trainer_state.json")
    assert again == saved


def test_replay_of_step_zero_is_the_base_model_and_the_default_is_the_last_step(finished, mini):
    assert main(["replay", str(finished), "--step", "0", "--output", "base"]) == 0
    assert main(["replay", str(finished), "--output", "last"]) == 0
    assert Path("base/model.safetensors").read_bytes() == (mini / "model.safetensors").read_bytes()
    assert (
        Path("last/model.safetensors").read_bytes()
        == (finished / "checkpoint-3/model.safetensors").read_bytes()
    )


def test_replay_takes_the_base_model_from_where_it_is_now(finished, mini):
    import shutil

    shutil.copytree(mini, "moved")
    assert main(["replay", str(finished), "--output", "again", "--model", "./moved"]) == 0
    assert (
        Path("again/model.safetensors").read_bytes()
        == (finished / "checkpoint-3/model.safetensors").read_bytes()
    )


def test_replay_from_another_base_model_is_refused(finished, tiny, capsys):
    assert main(["replay", str(finished), "--output", "again", "--model", str(tiny)]) == 2
    assert "the base model is not the one that this run had" in capsys.readouterr().err
    assert not Path("again").exists()


def test_replay_of_a_folder_without_a_journal_is_refused(refused):
    Path("no-run").mkdir()
    assert "no-run/journal.jsonl: cannot be read" in refused(
        "replay", "no-run", "--output", "again"
    )
    assert "is no-run the folder of a run?" in refused("replay", "no-run", "--output", "again")
    assert "nowhere/journal.jsonl: cannot be read" in refused(
        "replay", "nowhere", "--output", "again"
    )


@pytest.mark.parametrize("step", ["4", "-1", "2.0", "last", "", "²"])
def test_replay_of_a_step_that_the_run_does_not_have_names_the_last(step, finished, refused):
    message = refused("replay", finished, "--step", step, "--output", "again")
    assert f"step: must be a number from 0 to 3, the run's last step; it is {step!r}" in message


def test_replay_overwrites_nothing_and_names_an_output_that_cannot_be_written(
    finished, data, refused
):
    Path("there").mkdir()
    assert "output: there exists already; choose another" in refused(
        "replay", finished, "--output", "there"
    )
    message = refused("replay", finished, "--output", data / "inside" / "again")
    assert f"output: {data}/inside cannot be written (Not a directory); choose another" in message


def test_replay_of_a_damaged_journal_names_the_line(finished, refused):
    text = (finished / "journal.jsonl").read_text().splitlines(keepends=True)
    Path("damaged").mkdir()
    Path("damaged/journal.jsonl").write_text(
        text[0] + text[1].replace('"step": 1', '"step": 7') + "".join(text[2:])
    )
    assert "damaged/journal.jsonl: line 2 is damaged" in refused(
        "replay", "damaged", "--output", "again"
    )


# eval


def test_eval_prints_tables_and_writes_every_answer(mini, capsys):
    command = [
        "eval",
        "--model",
        str(mini),
        "--task",
        "conciseness",
        "--engine",
        "fake",
        "--max_eval_samples",
        "3",
    ]
    assert main([*command, "--output", "answers.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert all(
        word in out
        for word in (
            "3 held-out prompts",
            "prompt",
            "completion",
            "reward",
            "metric",
            "eval_reward",
        )
    )
    assert err == ""
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(answers) == 3
    assert all(
        set(answer)
        == {"model", "task", "sample", "length", "prompt", "completion", "reward", "target"}
        for answer in answers
    )
    assert all(
        answer["reward"] == -abs(len(answer["completion"]) - len(answer["target"]))
        for answer in answers
    )
    assert [path.name for path in Path().iterdir()] == ["answers.jsonl"]


def test_what_eval_wrote_can_be_scored(mini, capsys):
    flags = ["--engine", "fake", "--max_eval_samples", "4", "--output", "answers.jsonl"]
    assert main(["eval", "--model", str(mini), "--task", "conciseness", *flags]) == 0
    capsys.readouterr()
    assert main(["score", "--task", "conciseness", "--completions", "answers.jsonl"]) == 0
    scored = [float(line) for line in capsys.readouterr().out.splitlines()]
    assert scored == [
        json.loads(line)["reward"] for line in Path("answers.jsonl").read_text().splitlines()
    ]


def test_eval_of_a_file_by_its_own_rewards(mini, data, capsys):
    flags = [
        "--dataset_name",
        str(data),
        "--dataset_test_split",
        "train",
        "--reward_funcs",
        "conciseness_reward",
    ]
    assert main(["eval", "--model", str(mini), "--engine", "fake", *flags]) == 0
    assert "4 held-out prompts" in capsys.readouterr().out


def test_eval_of_a_dataset_without_the_split_says_which_setting_to_change(mini, data, refused):
    flags = ["--engine", "fake", "--dataset_name", data, "--reward_funcs", "conciseness_reward"]
    message = refused("eval", "--model", mini, *flags)
    assert f"dataset_test_split: {data} has no split 'test'" in message
    assert "eval_dataset_name" in message


def test_eval_of_what_is_no_model_is_refused(refused):
    assert "/no/model: no such folder" in refused(
        "eval", "--model", "/no/model", "--task", "countdown"
    )


def test_eval_names_an_output_that_cannot_be_written_before_it_evaluates(mini, data, refused):
    flags = ["--task", "conciseness", "--engine", "fake", "--output", data / "answers.jsonl"]
    assert f"output: {data}/answers.jsonl cannot be written (Not a directory)" in refused(
        "eval", "--model", mini, *flags
    )


# score


def scored(capsys, *rows, task="countdown") -> list[str]:
    lines(Path("answers.jsonl"), rows)
    assert main(["score", "--task", task, "--completions", "answers.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_a_right_answer_in_full_format_scores_1_1_and_the_answer_alone_1_05(capsys):
    assert [float(line) for line in scored(capsys, FULL, BARE)] == pytest.approx([1.1, 1.05])


def test_score_prints_one_json_number_a_line_and_nothing_else(capsys):
    rows = [FULL, BARE, COUNTDOWN | {"completion": "no idea"}, COUNTDOWN | {"completion": ""}]
    rewards = [json.loads(line) for line in scored(capsys, *rows)]
    assert len(rewards) == 4
    assert all(type(reward) is float for reward in rewards)


def test_a_completion_may_be_a_list_of_messages(capsys):
    messages = [{"role": "assistant", "content": FULL["completion"]}]
    assert [
        float(line) for line in scored(capsys, COUNTDOWN | {"completion": messages})
    ] == pytest.approx([1.1])


def test_blank_lines_between_rows_are_passed_over(capsys):
    Path("answers.jsonl").write_text(f"\n{json.dumps(FULL)}\n\n  \n{json.dumps(BARE)}")
    assert main(["score", "--task", "countdown", "--completions", "answers.jsonl"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_empty_file_scores_nothing(capsys):
    assert scored(capsys) == []


def test_each_task_scores_its_own_rows(capsys, monkeypatch):
    problem = {
        "problem": "1 + 1",
        "answer": "2",
        "text": "Add.",
        "test_list": ["assert add(1) == 2"],
    }  # in place of the hub's
    monkeypatch.setattr(
        "estune.tasks.rows.load_rows", lambda *where, adapt: list(adapt([problem] * 3))
    )
    for name, task in TASKS.items():
        assert (
            len(scored(capsys, *({**row, "completion": "hm"} for row in task.test(3)), task=name))
            == 3
        )


def test_completions_through_a_real_pipe():
    rows = f"{json.dumps(FULL)}\n{json.dumps(BARE)}\n"
    command = [
        Path(sys.executable).parent / "estune",
        "score",
        "--task",
        "countdown",
        "--completions",
        "-",
    ]
    shown = subprocess.run(command, input=rows, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [float(line) for line in shown.stdout.splitlines()] == pytest.approx([1.1, 1.05])


def test_score_with_functions_of_ones_own(capsys, tmp_path):
    name = module(
        "print('loading')\ndef f(completions, level):\n    print('hello')\n    return level\n",
        tmp_path,
    )
    lines(
        Path("answers.jsonl"), [{"completion": "x", "level": 3}, {"completion": "y", "level": None}]
    )
    assert main(["score", "--reward_funcs", f"{name}.f", "--completions", "answers.jsonl"]) == 0
    out, err = capsys.readouterr()
    assert out == "3.0\nnull\n"
    assert "hello" in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"completion": "x", ', "answers.jsonl: line 1 is no JSON"),
        (
            '{"completion": "x", "numbers": [1], "target": 1}\nnot json',
            "answers.jsonl: line 2 is no JSON",
        ),
        ("[" * 100_000, "answers.jsonl: line 1 is no JSON"),
        ('{"completion": ' + "9" * 5000 + "}", "answers.jsonl: line 1 is no JSON"),
        (
            '{"numbers": [1], "target": 1}',
            "line 1 must be a JSON object with 'completion' and the task's columns",
        ),
        ('["completion"]', "line 1 must be a JSON object with 'completion'"),
        (
            '{"completion": "x"}',
            "reward function countdown_reward: nothing provides its parameter 'numbers'",
        ),
        ('{"completion": "x", "numbers": [1]}', "nothing provides its parameter 'target'"),
        (
            '{"completion": 3, "numbers": [1], "target": 1}',
            "answers.jsonl: row 1: its completion is neither text nor a list",
        ),
        (
            '{"completion": [], "numbers": [1], "target": 1}',
            "answers.jsonl: row 1: its completion is neither text nor a list",
        ),
        (
            '{"completion": "x", "numbers": "1", "target": 1}',
            "numbers is '1', not a list of integers",
        ),
        (
            '{"completion": "x", "numbers": [1], "target": "many"}',
            "the target 'many' is not a number",
        ),
        ('{"completion": "x", "numbers": [1], "target": NaN}', "not a finite number"),
        (
            '{"completion": "x", "numbers": [1], "target": 1}\n{"completion": "x", "numbers": [1]}',
            "row 2 has the columns completion, numbers, row 1 has completion, numbers, target",
        ),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_with_their_place(text, says, refused):
    Path("answers.jsonl").write_text(text)
    assert says in refused("score", "--task", "countdown", "--completions", "answers.jsonl")


def test_a_completions_file_that_cannot_be_read_is_named(refused):
    assert "missing.jsonl: cannot be read (No such file or directory)" in refused(
        "score", "--task", "countdown", "--completions", "missing.jsonl"
    )
    Path("binary.jsonl").write_bytes(b"\x80\xff")
    assert "binary.jsonl: cannot be read" in refused(
        "score", "--task", "countdown", "--completions", "binary.jsonl"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_completions(encoding, capsys):
    Path("answers.jsonl").write_text(json.dumps(BARE), encoding=encoding)
    assert main(["score", "--task", "countdown", "--completions", "answers.jsonl"]) == 0
    assert capsys.readouterr().out == "1.05\n"


def test_score_of_an_unknown_task_names_the_nearest(refused):
    assert "did you mean 'countdown'?" in refused(
        "score", "--task", "countdow", "--completions", "x"
    )


# whatever is typed


LIGHT = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
WORDS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
TYPED = WORDS | st.sampled_from(
    ["--", "-", "-1", "1e-3", "nan", "none", "true", "{a: b}", "[", "2024-99-99", "-h", "%s", "@x"]
)


def ends_well(capsys, arguments) -> str:
    """Run the command, which must print help, or refuse in one line; returns what it said."""
    status = main(arguments)
    out, err = capsys.readouterr()
    assert status in (0, 2)
    if status == 2:
        assert err.startswith("estune: ")
        assert err.count("\n") == 1
        assert out == ""
    return out + err


@LIGHT
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(RunConfig.__dataclass_fields__)) | WORDS, TYPED),
        max_size=4,
    )
)
def test_no_flags_end_in_a_traceback(capsys, pairs):
    flags = [word for name, value in pairs for word in (f"--{name}", value)]
    ends_well(
        capsys,
        [
            "train",
            *flags,
            "--model_name_or_path",
            "./nowhere",
            "--dataset_name",
            "none",
            "--task",
            "none",
        ],
    )


@LIGHT
@given(st.lists(TYPED, max_size=4))
def test_no_words_end_in_a_traceback(capsys, words):
    ends_well(capsys, words)


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(), inner, max_size=3)
    ),
)


@LIGHT
@given(
    WORDS
    | st.dictionaries(
        st.sampled_from(sorted(RunConfig.__dataclass_fields__)) | WORDS, YAML_VALUES, max_size=4
    ).map(yaml.safe_dump)
    | st.lists(
        st.sampled_from(["a: ", "2024-99-99", "0x_", *"[]{}-&*!|>'%@\n1~"]), max_size=12
    ).map("".join)
)
def test_no_yaml_file_ends_in_a_traceback(capsys, text):
    Path("run.yaml").write_text(text)
    ends_well(capsys, ["train", "--config", "run.yaml", "--model_name_or_path", "none"])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
)
ROW = st.fixed_dictionaries(
    {"completion": WORDS | JSON_VALUES, "numbers": JSON_VALUES, "target": JSON_VALUES}
)


@LIGHT
@given(
    st.text(max_size=40).map(str.encode)
    | st.binary(max_size=40)
    | st.lists(ROW, max_size=3).map(json.dumps).map(str.encode)
)
def test_no_completions_file_ends_in_a_traceback(capsys, content):
    Path("answers.jsonl").write_bytes(content)
    ends_well(capsys, ["score", "--task", "countdown", "--completions", "answers.jsonl"])


@pytest.mark.slow
@LIGHT
@given(st.lists(ROW, min_size=1, max_size=3))
def test_no_row_ends_in_a_traceback(capsys, rows):
    lines(Path("answers.jsonl"), rows)
    said = ends_well(capsys, ["score", "--task", "countdown", "--completions", "answers.jsonl"])
    assert said.startswith("estune: ") or len(said.splitlines()) == len(rows)
