"""The same rows have the same fingerprint in every process, and other rows have another one.

Rows without content to compare are refused.
"""

import array
import collections
import datetime
import enum
import re
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from types import SimpleNamespace
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from estune.errors import DataError
from estune.run.data_fingerprint import digest, recorded_or_new

JSON_ROWS = [
    {"prompt": "a", "target": 1.5, "tags": ["é", None, True], "meta": {"b": 1, "a": []}},
    {"prompt": [{"role": "user", "content": "hi"}], "target": 2**70, "tags": [], "meta": {}},
]


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Check:
    name: str
    allowed: set[str]


def picture(shade):
    return Image.new("RGB", (4, 4), (shade, 0, 0))


def rows(value):
    return [{"prompt": "a", "value": value}]


# Pairs of values of one kind: a maker, so that each can be made twice, and what to make it of.
KINDS = {
    "picture": (picture, 1, 2),
    "picture with a palette": (lambda shade: picture(shade).convert("P"), 100, 200),
    "set": (set, ["x", "yy", "zzz"], ["x", "yy", "z"]),
    "frozenset of tuples": (frozenset, [(1, "a"), (2, "b")], [(1, "a"), (2, "c")]),
    "keys of two kinds": (dict, [(1, "x"), ("b", 2)], [("1", "x"), ("b", 2)]),
    "integer keys": (dict, [(1, "x")], [("1", "x")]),
    "tuple": (tuple, [1, 2], [1, 3]),
    "long array": (lambda at: np.arange(100_000) == at, 50_000, 50_001),
    "array's type": (lambda dtype: np.zeros(3, dtype), "int32", "int64"),
    "array of objects": (lambda last: np.array([{"a"}, last], dtype=object), "b", "c"),
    "number of numpy": (np.int64, 3, 4),
    "time of numpy": (np.datetime64, "2024-01-01", "2024-01-02"),
    "tensor": (lambda at: torch.arange(5000) == at, 2500, 2501),
    "tensor in bfloat16": (lambda one: torch.tensor(one, dtype=torch.bfloat16), 1.0, 2.0),
    "date": (datetime.date.fromisoformat, "2024-01-05", "2024-01-06"),
    "datetime": (
        datetime.datetime.fromisoformat,
        "2024-01-05T10:00:00+00:00",
        "2024-01-05T10:00:00+01:00",
    ),
    "time": (datetime.time.fromisoformat, "10:00", "10:01"),
    "timedelta": (lambda days: datetime.timedelta(days), 1, 2),
    "decimal": (Decimal, "1.10", "1.1"),
    "fraction": (Fraction, "1/3", "2/3"),
    "complex": (complex, 1j, 2j),
    "bytes": (bytes, [1, 2], [1, 3]),
    "bytearray": (bytearray, [1, 2], [1, 3]),
    "path": (PurePosixPath, "a", "b"),
    "uuid": (lambda number: UUID(int=number), 1, 2),
    "pattern": (re.compile, "a", "b"),
    "range": (range, 3, 4),
    "enum": (Color, 1, 2),
    "namespace": (lambda n: SimpleNamespace(n=n), 1, 2),
    "dataclass": (lambda name: Check(name, {"x", "y", "zz"}), "a", "b"),
    "deque": (collections.deque, [1], [2]),
    "array.array": (lambda numbers: array.array("i", numbers), [1], [2]),
    "not a number": (float, "nan", "inf"),
    "missing times of pandas": (pd.Timestamp, "NaT", "2024-01-01"),
    "nanoseconds": (pd.Timestamp, 1, 2),
    "missing value of pandas": (lambda value: pd.array(value, dtype="Int64")[0], [None], [1]),
    "sign of zero": (float, 0.0, -0.0),
    "huge integer": (lambda power: 10**power, 6000, 6001),
    "kind of number": (lambda value: value, 1, 1.0),
    "truth": (lambda value: value, True, 1),
    "half a character": (str, "\ud800", "\ud801"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_has_the_fingerprint_of_its_content(kind):
    make, one, other = KINDS[kind]
    assert digest(rows(make(one))) == digest(rows(make(one)))
    assert digest(rows(make(one))) != digest(rows(make(other)))


def test_the_fingerprint_is_the_same_in_a_process_that_orders_sets_otherwise():
    program = """
import sys; sys.path[:0] = {path!r}
from test_data_fingerprint import KINDS, rows
from estune.run.data_fingerprint import digest
print(digest([row for make, one, _ in KINDS.values() for row in rows(make(one))]))
"""
    command = [sys.executable, "-c", program.format(path=sys.path)]
    there = subprocess.check_output(command, env={"PYTHONHASHSEED": "12345"}, text=True)
    assert there.strip() == digest(
        [row for make, one, _ in KINDS.values() for row in rows(make(one))]
    )


def test_rows_of_json_keep_the_fingerprint_that_the_first_versions_gave_them():
    assert digest(JSON_ROWS) == "6c90c87914718c422c6019be7a499ccf"


def test_a_run_of_an_earlier_version_is_known_by_what_it_recorded():
    dates = rows(datetime.date(2024, 1, 5))
    recorded = "6f790ce5638e55eec753097fbe0c9d0c"  # of `str` of the date
    assert (
        recorded_or_new(recorded, [{"prompt": "a", "day": datetime.date(2024, 1, 5)}], "new")
        == recorded
    )
    assert recorded_or_new(recorded, dates, "new") == "new"
    assert recorded_or_new(None, rows({1: "a", "b": 2}), "new") == "new"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda text: 0, "holds an object of type function, whose content cannot be compared"),
        ([{"deep": object()}], "holds an object of type object"),
        (Image, "holds an object of type module"),
    ],
)
def test_a_value_without_content_is_refused_by_its_row_and_column(value, says):
    with pytest.raises(DataError, match="train_dataset: row 1: column 'value' ") as caught:
        digest([{"prompt": "a", "value": 1}, *rows(value)])
    assert says in str(caught.value)
    assert "Make it text, numbers, lists or mappings" in str(caught.value)


def test_a_value_that_holds_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(DataError, match="column 'value' is nested too deeply, or contains itself"):
        digest(rows(value))


def test_a_picture_that_cannot_be_read_is_refused(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    with pytest.raises(DataError, match="column 'value' holds an unreadable value"):
        digest(rows(Image.open(tmp_path / "torn.png")))
