"""Words from models, data, files and reward functions reach the user as plain text.

This holds for both output streams and for the files that people read.
"""

import io
import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml
from helpers import lines, module
from hypothesis import given
from hypothesis import strategies as st

from estune import ESConfig
from estune.cli.main import main
from estune.common.visible import CleanStream, clean, clean_streams, one_line
from estune.errors import DataError
from estune.evaluation.compare.table import _line
from estune.evaluation.report import _csv
from estune.rewards.call import Failure, failure_of
from estune.run.publish import write_card, write_config
from estune.run.step_evaluation import LostReward

EVIL = "\x1b]0;owned\x07\x1b[2J \x9b31m \u202eRTL\u2066 \u200f \x7f \u2028 \r over \ud800"
HARMFUL = {*map(chr, [*range(32), *range(127, 160)])} - {"\n", "\t"} | set(
    "\u061c\u200e\u200f\u2028\u2029"
)
HARMFUL |= {*map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)])}


def harmful(text: str) -> list[str]:
    return sorted(repr(c) for c in set(text) & HARMFUL)


@given(st.text())
def test_nothing_harmful_is_left_and_cleaning_twice_changes_nothing(text):
    assert harmful(clean(text)) == []
    assert clean(clean(text)) == clean(text)
    clean(text).encode("utf-8")


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_visible_text_stays_as_it_is(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    "text", ["naïve", "漢字かな", "مرحبا שלום", "👩‍👩‍👧", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "क्‍ष", "a\tb\nc", "e\u0301"]
)
def test_accents_scripts_and_emoji_stay_as_they_are(text):
    assert clean(text) == text


def test_every_bidirectional_control_of_unicode_is_left_out():
    controls = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    found = [
        chr(c) for c in range(sys.maxunicode + 1) if unicodedata.bidirectional(chr(c)) in controls
    ]
    assert len(found) == 9
    assert clean("".join(found)) == ""


def test_what_has_no_text_is_named():
    class Silent(Exception):
        def __str__(self):
            raise SystemExit

    assert one_line(Silent()) == "Silent without a text (SystemExit)"
    assert one_line("a\x1c\n b" + "c" * 9, 5) == "a bc…"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stream_shows_clean_text_in_its_own_encoding(terminal):
    below = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    below.isatty = lambda: terminal
    stream = CleanStream(below)
    assert stream.write(EVIL) == len(EVIL)
    stream.writelines(["θ\r", "\x1b[A"])
    assert below.buffer.getvalue().decode("ascii") == "]0;owned[2J 31m RTL      over ??[A"


@pytest.mark.parametrize(("terminal", "wanted"), [(True, "\r50%\r99%"), (False, "\n50%\n99%")])
def test_a_progress_bar_may_begin_its_line_anew_on_a_terminal_and_gets_lines_elsewhere(
    terminal, wanted
):
    below = io.StringIO()
    below.isatty = lambda: terminal
    for text in ("\r50%", "\r99%"):
        CleanStream(below).write(text)
    assert below.getvalue() == wanted


def test_streams_are_as_before_after_the_command(capsys):
    before = sys.stdout, sys.stderr
    with clean_streams(), clean_streams():
        print(EVIL)
        print(EVIL, file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert harmful("".join(capsys.readouterr())) == []


def test_errors_are_clean_and_keep_what_they_were_made_of():
    error = DataError(f"{EVIL}: no such file")
    assert harmful(str(error)) == []
    assert error.args == (f"{EVIL}: no such file",)


def test_a_failure_of_a_reward_function_is_clean():
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        failure = failure_of(len, error)
    assert harmful(failure.reason + failure.details) == []
    assert "\n" not in failure.reason


def test_files_for_people_are_clean(tmp_path):
    config = ESConfig(output_dir=str(tmp_path))
    write_card(tmp_path, config, f'x"\n# forged {EVIL}', 1, {f"eval_a|{EVIL}\n": 1.0})
    card = (tmp_path / "README.md").read_text()
    assert harmful(card) == []
    assert yaml.safe_load(card.split("---")[1])["base_model"].startswith('x" # forged')
    assert "\n# forged" not in card
    lost = str(LostReward("f", Failure(EVIL, EVIL), EVIL, EVIL))
    assert harmful(lost + _csv([{EVIL: EVIL}]) + _line([EVIL])) == []
    assert _line(["a|b\nc"]) == "| a\\|b c |"


def test_config_yaml_keeps_the_exact_settings_escaped(tmp_path):
    name = EVIL.replace("\ud800", "")
    write_config(tmp_path, ESConfig(run_name=name))
    text = (tmp_path / "config.yaml").read_text()
    assert harmful(text) == []
    assert yaml.safe_load(text)["run_name"] == name
    write_config(tmp_path, ESConfig(run_name="naïve"))
    assert "naïve" in (tmp_path / "config.yaml").read_text()


FUNCTIONS = """
import sys
def prints(completions, prompts):
    print("judging", prompts[0]); print(prompts[0], file=sys.stderr)
    return [len(c) for c in completions]
def later(completions, prompts, trainer_state):
    if trainer_state.global_step: raise ValueError(f"cannot read {prompts[0]}")
    return [len(c) for c in completions]
def first(completions, prompts): raise ValueError(f"cannot read {prompts[0]}")
"""


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_run_shows_clean_text_whatever_its_prompts_and_reward_functions_say(
    mini, tmp_path, capfd, workers
):
    lines(tmp_path / "d.jsonl", [{"prompt": EVIL.replace("\ud800", "")}] * 2)
    name = module(FUNCTIONS, tmp_path)
    for function, status in {"prints": 0, "later": 0, "first": 2}.items():
        flags = [
            "--engine",
            "fake",
            "--population_size",
            "2",
            "--max_steps",
            "2",
            "--log_completions",
            "true",
            "--reward_workers",
            workers,
        ]
        where = [
            "--model_name_or_path",
            str(mini),
            "--dataset_name",
            "d.jsonl",
            "--output_dir",
            function,
        ]
        assert main(["train", *where, *flags, "--reward_funcs", f"{name}.{function}"]) == status
        out, err = capfd.readouterr()
        assert harmful(out + err) == []
        assert "RTL" in out + err
    assert harmful(Path("later", "reward_error.txt").read_text()) == []


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_names_and_values_in_refusals_are_clean(refused, tmp_path):
    bad = EVIL.replace("\ud800", "").replace("\n", "")
    Path("keys.yaml").write_text(json.dumps({bad: 1}))
    Path("values.yaml").write_text(json.dumps({"sigma": bad}))
    Path(f"file{bad}.jsonl").write_text("no json")
    for arguments in (
        ["train", "--config", "keys.yaml"],
        ["train", "--config", "values.yaml"],
        ["train", "--config", f"none{bad}.yaml"],
        ["train", "--config", "bytes\udc9b.yaml"],
        ["train", f"--{bad}", "1"],
        ["score", "--task", "countdown", "--completions", f"file{bad}.jsonl"],
        ["replay", bad, "--output", "x"],
        [bad],
    ):
        assert harmful(refused(*arguments)) == []


def test_a_log_message_cannot_forge_the_beginning_of_another(capsys):
    with pytest.raises(SystemExit):
        main(["--version"]) or logging.getLogger("estune").warning("one\nestune: two") or sys.exit()
    assert not [line for line in capsys.readouterr().err.splitlines() if line == "estune: two"]
