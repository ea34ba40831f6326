"""No flags, words or files end in a traceback."""

import json
from pathlib import Path

import pytest
import yaml
from helpers import lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from estune.cli.main import main
from estune.config import RunConfig

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


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
