"""Entries of reasoning-gym survive JSON."""

from __future__ import annotations

from typing import Any

import pytest

from estune.errors import DataError
from estune.tasks.gym_entries import decode, encode
from estune.tasks.gym_rows import gym_rows
from estune.tasks.gym_scoring import gym_reward

pytest.importorskip("reasoning_gym")


def test_an_entry_keeps_its_tuples_and_keys() -> None:
    entry = {
        "question": "?",
        "answer": "1",
        "metadata": {"a": (1, [2, (3,)]), "b": {1: "x", (2, 3): None}, "c": {}},
    }
    assert decode(encode(entry)) == entry


@pytest.mark.parametrize(
    "entry",
    ["", "no JSON", "[]", "{}", '{"question": 1, "answer": 2, "metadata": 3}', None, "[" * 100_000],
)
def test_an_invalid_entry_is_refused_with_its_row(entry: Any) -> None:
    good = gym_rows("basic_arithmetic", "train", 1)[0]
    with pytest.raises(DataError, match="row 1: the entry is no entry"):
        gym_reward(["", ""], entry=[good["entry"], entry], dataset=["basic_arithmetic"] * 2)
