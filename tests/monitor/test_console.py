"""Model output is shown as text: no markup, no control codes, and nothing in it ends a run."""

import io
import sys

import pytest

from estune import ESConfig
from estune.monitor.console import Screen, clean, prompt_text
from estune.workers.base import Status

HOSTILE = [
    "[/think]",
    "[bold]loud[/bold]",
    "[link=http://x]y[/link]",
    ":smile: \\[x]",
    "[red",
    "]]",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "a\rb\x00c\x7f\x9bd",
    "\ud800 lone",
    "wide 漢字 and ✨",
    "x" * 5000,
    "",
]


def record(text, reward=1.0):
    return {"prompt": text, "completion": text, "reward": reward}


def metrics(**changes):
    usual = {
        "reward": -1.5,
        "reward_std": 0.25,
        "es/reward_best": -1.0,
        "es/tokens_per_second": 120.0,
        "step_time": 2.0,
    }
    return usual | changes


@pytest.fixture
def screen(monkeypatch):
    """A screen and the stream that it writes to, with the width of a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")

    def make(stream=None, **settings):
        stream = stream or io.StringIO()
        monkeypatch.setattr(sys, "stdout", stream)
        return Screen(ESConfig(**{"max_steps": 3, "population_size": 2} | settings)), stream

    return make


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "text",
    ["[/think]", "[bold]loud[/bold]", "[link=http://x]y[/link]", ":smile: \\[x]", "[red", "]]"],
)
def test_markup_in_a_completion_is_shown_as_it_is(screen, text):
    shown, stream = screen()
    shown.samples("sample", [record(text)])
    shown.say(text)
    assert stream.getvalue().count(text) >= 3


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_a_model_writes_ends_the_run(screen, text, terminal):
    shown, _ = screen(Terminal() if terminal else io.StringIO())
    shown.say(text)
    shown.start(0)
    shown.samples(text, [record(text), record(text, None), record(text, float("nan"))])
    shown.before_after([record(text)], [record(text)], {"eval_reward": None}, {"eval_reward": 1.0})
    shown.evaluation(1, {"eval_reward": None, "eval_runtime": 1.0})
    shown.stop()


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_never_reach_the_stream(screen, text):
    shown, stream = screen()
    shown.say(text)
    shown.samples(text, [record(text)])
    shown.table(text, ("metric", "value"), [(text, text)])
    assert not [c for c in stream.getvalue() if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)]


def test_the_visible_part_of_an_escape_code_stays():
    assert clean("\x1b[31mred\x1b[0m\ta\r\nb") == "[31mred[0m\ta\nb"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stream_that_cannot_write_greek_gets_question_marks(screen, terminal):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    stream.isatty = lambda: terminal
    shown, _ = screen(stream)
    shown.say("θ of σ")
    shown.samples("held out", [record("naïve ✨ 漢字")])
    shown.start(0)
    shown.member(1, 1, Status(1, 1, 1))
    shown.step(1, metrics())
    shown.stop()
    written = stream.buffer.getvalue().decode("ascii")
    assert "? of ?" in written
    assert "na?ve" in written


def test_half_a_character_is_shown_as_a_question_mark(screen):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    shown, _ = screen(stream)
    shown.samples("held out", [record("\ud800 lone")])
    assert "? lone" in stream.buffer.getvalue().decode("utf-8")


def test_without_a_terminal_there_are_plain_lines_and_no_bar(screen):
    shown, stream = screen()
    shown.start(0)
    for step in (1, 2, 3):
        shown.member(step, 1, Status(1, 1, 1))
        shown.member(step, 2, Status(1, 1, 1))
        shown.step(step, metrics())
    shown.stop()
    lines = stream.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["step", "1/3"],
        ["step", "2/3"],
        ["step", "3/3"],
    ]
    assert lines[0] == "step 1/3  reward -1.5 ± 0.25, best -1 120 tok/s  2.0 s"


def test_a_long_line_is_not_broken_when_it_is_not_a_terminal(screen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown, stream = screen()
    path = "/a/long/path" * 20
    shown.say(f"done: {path}")
    assert stream.getvalue() == f"done: {path}\n"


def test_logging_steps_thins_the_plain_lines_but_keeps_the_first_and_the_last(screen):
    shown, stream = screen(max_steps=25, logging_steps=10)
    for step in range(1, 26):
        shown.step(step, metrics())
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == [
        "1/25",
        "10/25",
        "20/25",
        "25/25",
    ]


def test_a_terminal_gets_a_bar_with_step_reward_and_speed(screen):
    shown, stream = screen(Terminal())
    shown.start(0)
    shown.member(1, 2, Status(1, 1, 1))
    shown.step(1, metrics())
    shown.stop()
    for part in ("step 1/3 (2/2)", "reward -1.5 ± 0.25, best -1", "120 tok/s", "left"):
        assert part in stream.getvalue()


def test_disable_tqdm_gives_plain_lines_on_a_terminal(screen):
    shown, stream = screen(Terminal(), disable_tqdm=True)
    shown.start(0)
    shown.step(1, metrics())
    shown.stop()
    assert "step 1/3  reward" in stream.getvalue()
    assert "left" not in stream.getvalue()


def test_a_step_in_which_no_member_got_a_reward_is_said_in_words(screen):
    shown, stream = screen()
    shown.step(1, metrics(reward=None, reward_std=None))
    assert "no member got a reward" in stream.getvalue()


def test_num_completions_to_print_limits_the_table(screen):
    shown, stream = screen(num_completions_to_print=2)
    shown.samples("held out", [record(f"answer{i}") for i in range(5)])
    assert "answer1" in stream.getvalue()
    assert "answer2" not in stream.getvalue()
    none, stream = screen(num_completions_to_print=0)
    none.samples("held out", [record("answer")])
    assert stream.getvalue() == ""


def test_answers_before_and_after_stand_beside_each_other(screen):
    shown, stream = screen()
    first, last = (
        {"eval_reward": -9.0, "eval_runtime": 1.0},
        {"eval_reward": -2.0, "eval_runtime": 1.0},
    )
    shown.before_after([record("long")], [record("brief")], first, last)
    text = stream.getvalue()
    assert all(
        part in text for part in ("before", "after", "long", "brief", "eval_reward", "-9", "-2")
    )
    assert "eval_runtime" not in text


def test_of_a_conversation_the_last_message_is_shown():
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "sky?"}]
    assert prompt_text(chat) == "sky?"
    assert prompt_text("sky?") == "sky?"


def test_of_several_workers_the_bar_says_who_is_alive_and_what_is_under_way(screen):
    shown, stream = screen(Terminal(), population_size=30, workers="ray", max_steps=5)
    shown.start(0)
    shown.member(1, 7, Status(3, 4, 2))
    shown.stop()
    assert "step 1/5 (7+2/30) 3/4 workers" in stream.getvalue()
