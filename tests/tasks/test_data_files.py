"""Rows hold exactly what the data file says: no guessed types and no expanded paths.

A file that cannot be read is reported in one line.
"""

import gzip
import json
import math

import pytest

from estune.errors import DataError
from estune.tasks.rows import has_split, load_rows, rows_of

ODD_NAMES = [
    "a b",
    "a[1]",
    "a*",
    "a?",
    "a#b",
    "a%20b",
    "a\nb",
    "zip:",
    "a::b",
    "{a}",
    "-a",
    "ü",
    "a'\"b",
]


def loaded(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return load_rows(str(path), "train")


def refusal(path, text, encoding="utf-8"):
    with pytest.raises(DataError) as caught:
        loaded(path, text, encoding)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# JSON


@pytest.mark.parametrize(
    "value",
    [
        *(
            "1969-07-20",
            "2024-01-05 10:00:00",
            "10:00",
            "007",
            "NA",
            "None",
            "null",
            "true",
            "1e3",
            "",
            " x ",
            "\u2028",
            "\U0001f600",
        ),
        *(
            1,
            1.0,
            -0.0,
            2**70,
            -(2**63) - 1,
            1e-300,
            True,
            False,
            None,
            [],
            {},
            [1, "a", None, [2.5]],
            [[1], ["x"]],
            {"1": {"a": None}},
        ),
    ],
)
def test_a_value_of_json_stays_what_it_is(value, tmp_path):
    rows = [{"prompt": "a", "value": value}, {"prompt": "b", "value": "other"}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    [first, _] = loaded(tmp_path / "a.jsonl", text)
    assert (type(first["value"]), repr(first["value"])) == (type(value), repr(value))


def test_no_row_gets_keys_of_another_in_a_mapping_and_columns_are_filled_with_none(tmp_path):
    rows = loaded(
        tmp_path / "a.jsonl",
        '{"prompt": "a", "m": {"x": 1}}\n{"prompt": "b", "m": {"y": 2}, "hint": "h"}\n',
    )
    assert rows == [
        {"prompt": "a", "m": {"x": 1}, "hint": None},
        {"prompt": "b", "m": {"y": 2}, "hint": "h"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "a"}\n{"prompt": "b"}\n',
        '\r\n{"prompt": "a"}\r\n\r\n{"prompt": "b"}',
        '[{"prompt": "a"}, {"prompt": "b"}]',
        '{"version": 1, "data": [{"prompt": "a"}, {"prompt": "b"}]}',
        '{\n  "prompt": "a"\n}\n{\n  "prompt": "b"\n}\n',
    ],
)
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".JSONL"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_each_layout_and_encoding(text, ending, encoding, tmp_path):
    assert loaded(tmp_path / f"a{ending}", text, encoding) == [{"prompt": "a"}, {"prompt": "b"}]


def test_a_number_that_is_none_is_read_as_python_writes_it(tmp_path):
    [row] = loaded(tmp_path / "a.jsonl", '{"prompt": "a", "nan": NaN, "inf": -Infinity}')
    assert math.isnan(row["nan"])
    assert row["inf"] == -math.inf


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a"}\n{"prompt": ', "cannot be read (line 2: Expecting value, column 12)"),
        (
            '{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}',
            "the JSON from line 2 on: the key 'prompt' stands twice in one object",
        ),
        (
            '{"prompt": "a", "x": 1e400}',
            "the number 1e400 is too large for a float; write it as a string",
        ),
        ('{"prompt": "a", "x": ' + "[" * 100_000, "nested too deeply"),
        ('{"prompt": "a", "x": ' + "1" * 5000 + "}", "the JSON from line 1 on: Exceeds the limit"),
        ("{'prompt': 'a'}", "line 1: Expecting property name enclosed in double quotes"),
        ('"text"', "row 0: is not an object with columns, but 'text'"),
        ('{"prompt": "\\ud800"}', "row 0: the prompt holds half of a character"),
        (
            '[{"prompt": [{"role": "user", "content": "\\ud800"}]}]',
            "row 0: the prompt holds half of a character",
        ),
    ],
)
def test_json_that_cannot_be_kept_is_refused_in_a_line(text, says, tmp_path):
    assert says in refusal(tmp_path / "a.jsonl", text)


def test_another_encoding_is_named_with_its_line(tmp_path):
    assert "cannot be read (line 2 is not utf-8: " in refusal(
        tmp_path / "a.csv", "prompt\né\n", "latin-1"
    )


# CSV


def test_all_of_a_csv_file_is_text(tmp_path):
    text = 'prompt,answer,n\nq,007,1\n2024,NA,\n"a, ""b""\nc",None, x \r\n\n'
    assert loaded(tmp_path / "a.csv", text) == [
        {"prompt": "q", "answer": "007", "n": "1"},
        {"prompt": "2024", "answer": "NA", "n": ""},
        {"prompt": 'a, "b"\nc', "answer": "None", "n": " x "},
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_a_columns_name(encoding, tmp_path):
    assert loaded(tmp_path / "a.csv", "prompt,é\na,1\n", encoding) == [{"prompt": "a", "é": "1"}]


def test_a_field_may_be_longer_than_pythons_limit(tmp_path):
    assert loaded(tmp_path / "a.csv", f"prompt\n{'x' * 200_000}\n") == [{"prompt": "x" * 200_000}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt,x,x\na,1,2\n", "has two columns 'x'; rename one"),
        (
            "prompt;answer\na;b\n",
            "its first line is 'prompt;answer'; columns must be separated by commas",
        ),
        ('prompt,x\na,"1\n', "cannot be read (line 2: unexpected end of data)"),
        ("question,x\na,1\n", "has no column 'prompt'; its columns are question, x"),
    ],
)
def test_csv_that_cannot_be_read_is_refused_in_a_line(text, says, tmp_path):
    assert says in refusal(tmp_path / "a.csv", text)


# odd rows


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        ("a.csv", "c,d", "row 2: has 2 fields for 1 columns"),
        ("a.jsonl", "null", "row 2: is not an object with columns, but None"),
        ("a.jsonl", '{"prompt": null}', "row 2: the prompt is neither text nor a list of messages"),
        ("a.jsonl", '{"other": 1}', "row 2: the prompt is neither text nor a list of messages"),
    ],
)
def test_one_odd_row_is_left_out_and_named(name, row, why, tmp_path, caplog):
    good = ["a", "b"] if name.endswith(".csv") else ['{"prompt": "a"}', '{"prompt": "b"}']
    text = "\n".join([*(["prompt"] if name.endswith(".csv") else []), *good, row])
    assert [row["prompt"] for row in loaded(tmp_path / name, text)] == ["a", "b"]
    [line] = caplog.messages
    assert line.startswith(f"{tmp_path / name}: 1 of 3 rows left out; the first is {why}")


# paths


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_is_read_whatever_its_path(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    assert load_rows(str(write_lines(folder / f"{name}.jsonl")), "train") == [
        {"prompt": "a", "day": "1969-07-20"}
    ]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_of_files_is_read_whatever_its_path(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    write_lines(folder / "train.jsonl")
    (folder / "test-[1].jsonl").write_text('{"prompt": "b"}')
    assert load_rows(str(folder), "train") == [{"prompt": "a", "day": "1969-07-20"}]
    assert load_rows(str(folder), "test") == [{"prompt": "b"}]
    assert has_split(str(folder), "test") and not has_split(str(folder), "validation")


def test_a_saved_dataset_is_read_whatever_its_path(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"prompt": "a"}]).save_to_disk(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "a[1]::b*")
    assert load_rows(str(tmp_path / "a[1]::b*"), "train") == [{"prompt": "a"}]


def test_a_folders_file_with_an_odd_row_is_named(tmp_path, caplog):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": 1}\n')
    assert load_rows(str(tmp_path), "train") == [{"prompt": "a"}]
    assert "1 of 2 rows left out" in caplog.text


def test_a_packed_file_is_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n'))
    assert load_rows(str(path), "train") == [{"prompt": "a"}]
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n')[:20])
    with pytest.raises(DataError, match="cannot be read"):
        load_rows(str(path), "train")
    path.write_bytes(b"no such thing")
    with pytest.raises(DataError, match="cannot be read"):
        load_rows(str(path), "train")


def write_lines(path):
    path.write_text('{"prompt": "a", "day": "1969-07-20"}\n')
    return path


# what Arrow adds


def test_keys_that_arrow_added_to_mappings_are_dropped(tmp_path):
    import datasets

    named = {"role": "user", "content": "b", "name": "n"}
    rows = [
        {"prompt": [{"role": "user", "content": "a"}], "m": {"x": 1}},
        {"prompt": [named], "m": {"y": [None]}},
    ]
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(tmp_path / "a.parquet")
    assert rows_of(data, "train_dataset") == rows
    assert load_rows(str(tmp_path / "a.parquet"), "train") == rows


def test_types_of_parquet_stay(tmp_path):
    import datetime
    from decimal import Decimal

    import pyarrow
    import pyarrow.parquet

    row = {
        "prompt": "a",
        "day": datetime.date(1969, 7, 20),
        "price": Decimal("1.10"),
        "data": b"\x00",
        "none": None,
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert load_rows(str(tmp_path / "a.parquet"), "train") == [row]


def test_sound_reaches_rewards_as_bytes_without_a_decoder(tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    features = datasets.Features(prompt=datasets.Value("string"), sound=datasets.Audio())
    table = pyarrow.table(
        {"prompt": ["a"], "sound": [{"bytes": b"RIFF", "path": None}]}, schema=features.arrow_schema
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = [{"prompt": "a", "sound": {"bytes": b"RIFF"}}]
    assert load_rows(str(tmp_path / "a.parquet"), "train") == rows
    assert rows_of(datasets.Dataset(table), "train_dataset") == rows
