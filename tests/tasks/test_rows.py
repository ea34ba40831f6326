"""Rows come from files of four kinds, folders, saved datasets and Python objects.

Wrong rows are refused in one line.
"""

import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estune.errors import DataError
from estune.run.data_fingerprint import digest
from estune.tasks.rows import has_split, load_rows, rows_of

ROWS = [{"prompt": f"question {i}", "target": str(i)} for i in range(3)]
CHAT = [{"role": "user", "content": "hi"}]


def refusal(name, split="train") -> str:
    with pytest.raises(DataError) as caught:
        load_rows(str(name), split)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name}: ")
    return message


def write(path, rows=ROWS):
    """Write rows in the format of the path's ending."""
    import datasets

    dataset = datasets.Dataset.from_list(rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        dataset.to_parquet(path)
    elif path.suffix == ".csv":
        dataset.to_csv(path)
    else:
        dataset.save_to_disk(path)
    return path


@pytest.fixture
def saved_splits(tmp_path):
    import datasets

    splits = {
        "train": datasets.Dataset.from_list(ROWS),
        "test": datasets.Dataset.from_list(ROWS[:1]),
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def folder_of_files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder / "train.jsonl")
    write(folder / "test.jsonl", ROWS[:1])
    return folder


# where rows come from


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet", ".csv"])
def test_a_file_of_each_kind_gives_its_rows(ending, tmp_path):
    rows = load_rows(str(write(tmp_path / f"rows{ending}")), "train")
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert [str(row["target"]) for row in rows] == ["0", "1", "2"]


def test_a_file_has_one_split_whatever_it_is_called(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    assert load_rows(str(path), "held_out") == ROWS
    assert has_split(str(path), "train")
    assert not has_split(str(path), "test")


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
def test_conversations_and_lists_survive_the_file(ending, tmp_path):
    rows = [{"prompt": CHAT, "numbers": [1, 2], "target": 3.5}]
    assert load_rows(str(write(tmp_path / f"rows{ending}", rows)), "train") == rows


def test_a_folder_with_a_file_for_each_split_gives_each_split(folder_of_files):
    assert load_rows(str(folder_of_files), "train") == ROWS
    assert load_rows(str(folder_of_files), "test") == ROWS[:1]
    assert has_split(str(folder_of_files), "test")
    assert not has_split(str(folder_of_files), "validation")


def test_a_dataset_saved_to_disk_gives_its_rows(tmp_path):
    path = write(tmp_path / "saved")
    assert load_rows(str(path), "train") == ROWS
    assert has_split(str(path), "train")
    assert not has_split(str(path), "test")


def test_a_dataset_dict_saved_to_disk_gives_each_split(saved_splits):
    assert load_rows(str(saved_splits), "train") == ROWS
    assert load_rows(str(saved_splits), "test") == ROWS[:1]
    assert has_split(str(saved_splits), "test")
    assert not has_split(str(saved_splits), "validation")


def test_a_relative_path_and_a_home_path_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rows.jsonl")
    assert (
        load_rows("rows.jsonl", "train")
        == load_rows("./rows.jsonl", "train")
        == load_rows("~/rows.jsonl", "train")
        == ROWS
    )


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "rows.jsonl")
    load_rows(str(path), "train")
    write(path, ROWS[1:])
    assert load_rows(str(path), "train") == ROWS[1:]


def test_python_objects_are_rows_too():
    import datasets

    assert rows_of(ROWS, "train_dataset") == ROWS
    assert rows_of(datasets.Dataset.from_list(ROWS), "train_dataset") == ROWS
    assert rows_of((row for row in ROWS), "train_dataset") == ROWS


def test_rows_are_copies():
    rows = rows_of(ROWS, "train_dataset")
    rows[0]["prompt"] = "changed"
    assert ROWS[0]["prompt"] == "question 0"


# what is refused


@pytest.mark.parametrize(
    "name",
    ["missing.jsonl", "data/missing.csv", "./missing", "/no/such/folder", "~/missing.parquet"],
)
def test_a_path_that_is_not_there_is_said_to_be_missing(name):
    assert "no such file or folder; give a file, a folder or a hub id" in refusal(name)


def test_a_hub_id_that_cannot_be_reached_says_so():
    message = refusal("someone/something")
    assert "Hub" in message
    assert "check the name" in message


def test_an_unknown_ending_lists_the_right_ones(tmp_path):
    (tmp_path / "rows.txt").write_text("hello")
    assert "must end in .json, .jsonl, .parquet, .csv" in refusal(tmp_path / "rows.txt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("torn.jsonl", b'{"prompt": "a"}\n{"prompt": '),
        ("torn.json", b'[{"prompt": "a"}, '),
        ("binary.jsonl", b"\x00\x80\xff"),
        ("binary.csv", b"prompt\n\x00\x80\xff"),
        ("junk.parquet", b"junk"),
        ("scalars.json", b"[1, 2]"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong_and_nothing_else_is_said(
    name, content, tmp_path, capfd, caplog
):
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_the_datasets_library_speaks_again_afterwards(tmp_path):
    import datasets

    before = datasets.utils.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    refusal(tmp_path / "missing.jsonl")
    assert (datasets.utils.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == before
    assert logging.getLogger("datasets").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", ""),
        ("b.json", ""),
        ("c.csv", ""),
        ("d.csv", "prompt,target\n"),
        ("e.jsonl", "\n"),
        ("f.json", "[]"),
    ],
)
def test_an_empty_file_has_no_rows(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert refusal(tmp_path / name).endswith("has no rows")


def test_an_empty_folder_is_refused(tmp_path):
    assert "data files" in refusal(tmp_path)


def test_a_dataset_without_a_prompt_lists_the_columns_that_it_has(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}])
    assert refusal(path).endswith("has no column 'prompt'; its columns are answer, question")


def test_an_unknown_split_is_named(saved_splits, folder_of_files):
    assert "'validation'" in refusal(saved_splits, "validation")
    assert "validation" in refusal(folder_of_files, "validation")


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        3,
        [],
        {},
        ["hi"],
        [{"role": "user"}],
        [{"content": "hi"}],
        [{"role": "user", "content": "hi"}, "x"],
    ],
)
def test_a_prompt_that_is_neither_text_nor_messages_is_named_by_its_row(prompt):
    with pytest.raises(
        DataError, match="train_dataset: row 1: the prompt is neither text nor a list of messages"
    ):
        rows_of([{"prompt": "fine"}, {"prompt": prompt}], "train_dataset")


def test_rows_of_unlike_columns_are_refused_with_both_sets():
    with pytest.raises(DataError, match="row 1 has the columns prompt, row 0 has prompt, target"):
        rows_of([{"prompt": "a", "target": 1}, {"prompt": "b"}], "train_dataset")


def test_no_rows_at_all_is_refused():
    with pytest.raises(DataError, match="eval_dataset: has no rows"):
        rows_of([], "eval_dataset")


@pytest.mark.parametrize("dataset", [["a prompt"], {"train": ROWS}, [1, 2], [[("prompt", "a")]]])
def test_rows_that_are_no_mappings_are_refused_as_when_all_splits_are_given(dataset):
    with pytest.raises(
        DataError, match="train_dataset: must be rows that map columns to values, such as one split"
    ):
        rows_of(dataset, "train_dataset")


# the fingerprint


def test_the_fingerprint_changes_with_any_value_and_the_order_but_not_with_the_order_of_columns():
    reordered = [dict(reversed(row.items())) for row in ROWS]
    assert digest(ROWS) == digest(reordered)
    assert digest(ROWS) != digest(ROWS[::-1])
    assert digest(ROWS) != digest([*ROWS[:2], ROWS[2] | {"target": "9"}])


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode),
    st.sampled_from([".json", ".jsonl", ".csv", ".parquet"]),
)
def test_any_file_gives_rows_or_one_line(tmp_path, content, ending):
    path = tmp_path / f"any{ending}"
    path.write_bytes(content)
    try:
        rows = load_rows(str(path), "train")
    except DataError as error:
        refused = str(error)
    else:
        refused = f"{path}: " if all("prompt" in row for row in rows) else "rows without a prompt"
    assert refused.startswith(f"{path}: ")
    assert "\n" not in refused


# what Python gives


def test_a_stream_without_an_end_is_refused(monkeypatch):
    import itertools

    monkeypatch.setattr("estune.tasks.rows._MOST", 100)
    with pytest.raises(
        DataError, match=r"train_dataset: a stream of more than 100 rows, .* \.take\(n\)"
    ):
        rows_of(({"prompt": str(i)} for i in itertools.count()), "train_dataset")
    assert len(rows_of(({"prompt": str(i)} for i in range(100)), "train_dataset")) == 100


def test_what_a_stream_raises_is_one_line():
    def stream():
        yield {"prompt": "a"}
        raise OSError("the server\nwent away")

    with pytest.raises(
        DataError, match=r"train_dataset: its rows cannot be read \(the server went away\)"
    ):
        rows_of(stream(), "train_dataset")


def test_a_column_is_named_by_text():
    with pytest.raises(
        DataError, match="train_dataset: row 1: a column's name must be text; it has 5"
    ):
        rows_of([{"prompt": "a"}, {"prompt": "b", 5: 1}], "train_dataset")


@pytest.mark.parametrize("kind", ["array", "list of numpy's integers", "tensor", "text of numpy"])
def test_prompts_of_numpy_and_torch_are_prompts(kind):
    import numpy as np
    import torch

    given = {
        "array": np.array([1, 2]),
        "tensor": torch.tensor([1, 2]),
        "text of numpy": np.str_("a"),
    }
    [row] = rows_of([{"prompt": given.get(kind, list(np.array([1, 2])))}], "train_dataset")
    assert row["prompt"] == ("a" if kind == "text of numpy" else [1, 2])
    assert {type(each) for each in row["prompt"]} <= {int, str}


@pytest.mark.parametrize("name", ["tools", "video", "image"])
def test_a_column_that_trl_would_show_to_the_model_is_named(name, make_trainer, caplog):
    rows = [{"prompt": "what is red", "target": "x", name: [{"type": "function"}]}]
    make_trainer(train_dataset=rows, eval_dataset=None)
    [line] = [line for line in caplog.messages if "column" in line]
    assert f"the dataset's column {name!r} is not shown to the model" in line


def test_a_column_of_nothing_is_not_named(make_trainer, caplog):
    make_trainer(
        train_dataset=[{"prompt": "what is red", "target": "x", "tools": None}], eval_dataset=None
    )
    assert caplog.messages == []


@pytest.mark.parametrize(
    "name", ["prompts", "completions", "completion_ids", "trainer_state", "log_metric", "self"]
)
def test_a_column_named_like_what_reward_functions_are_called_with_is_left_out_and_named(
    name, make_trainer, caplog
):
    seen = []

    class Reward:
        def __call__(self, completions, trainer_state=None, log_metric=None, **columns):
            seen.append(columns.get(name))
            return [0.0] * len(completions)

    rows = [{"prompt": "what is red", name: "mine"}]
    make_trainer(train_dataset=rows, eval_dataset=None, reward_funcs=Reward(), max_steps=1).train()
    assert seen and all(value != ["mine"] for value in seen)
    assert f"the dataset's column {name!r} does not reach reward functions" in caplog.text


def test_a_reward_function_of_a_column_that_is_not_passed_is_refused(make_trainer):
    from estune.errors import RewardError

    def reward(completions, completion):
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match="nothing provides its parameter 'completion'"):
        make_trainer(
            train_dataset=[{"prompt": "what is red", "completion": "x"}],
            reward_funcs=reward,
            eval_dataset=None,
        )
