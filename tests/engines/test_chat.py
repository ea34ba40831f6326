"""Conversations go through any chat template, or the error repeats what the template said."""

import logging

import pytest
from helpers import TEMPLATE, make_tokenizer

from estune.engines.chat import Chat
from estune.engines.tokens import Tokenizer
from estune.errors import DataError

USER = {"role": "user", "content": "what is red"}
SYSTEM = {"role": "system", "content": "be blue"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
)
SILENT = TEMPLATE.replace("%}{{ m['role']", "if m['role'] != 'system' %}{{ m['role']")
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{{ m['role'] }} {{ m['content'] }} {% endfor %}"
)
BROKEN = {
    "a syntax error": "{% for m in",
    "an unknown function": "{{ nobody_knows(messages) }}",
    "a division by zero": "{{ 1 // 0 }}",
    "a missing index": "{{ messages[7]['content'] }}",
    "a key of nothing": "{{ messages[0].no.such.key }}",
    "a sum of unlike things": "{{ 1 + messages[0]['content'] }}",
    "a refusal": "{{ raise_exception('only on Sundays') }}",
}


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.WARNING, "estune")


def chat(template=TEMPLATE, **settings) -> Chat:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Chat(tokenizer, settings)


def test_a_system_message_stays_where_the_template_takes_it(caplog):
    assert chat().render([SYSTEM, USER]) == "system be blue user what is red assistant "
    assert not caplog.records


@pytest.mark.parametrize("template", [NO_SYSTEM, SILENT, ALTERNATING])
def test_a_refused_system_message_goes_before_the_users_and_that_is_logged_once(template, caplog):
    one = chat(template)
    for _ in range(2):
        assert one.render([SYSTEM, USER]).startswith("user be blue\n\nwhat is red ")
    assert [record.message for record in caplog.records] == [
        "the model's chat template takes no system message, "
        "so its text goes before that of the first user message"
    ]


def test_a_conversation_that_a_template_refuses_either_way_keeps_the_templates_words():
    with pytest.raises(DataError, match="chat template refuses this conversation .*must alternate"):
        chat(ALTERNATING).render([SYSTEM, USER, USER])
    with pytest.raises(DataError, match="System role not supported"):
        chat(NO_SYSTEM).render([SYSTEM, {"role": "assistant", "content": "red"}])


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_whatever_a_template_raises_is_one_line(template):
    with pytest.raises(
        DataError,
        match=r"^the model's chat template refuses this conversation \(.+\); change its messages",
    ) as caught:
        chat(template).render([USER])
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "kind",
    [
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        MemoryError,
        ImportError,
        type("Own", (Exception,), {}),
    ],
)
def test_whatever_apply_chat_template_raises_is_one_line(kind, monkeypatch):
    one = chat()

    def fail(*arguments, **settings):
        raise kind("no such thing")

    monkeypatch.setattr(one._tokenizer, "apply_chat_template", fail)
    with pytest.raises(DataError, match="refuses this conversation .*no such thing"):
        one.render([USER])


def test_the_row_is_named(tmp_path):
    from estune import ESConfig

    tokenizer = make_tokenizer()
    tokenizer.chat_template = ALTERNATING
    with pytest.raises(DataError, match="^row 1: the model's chat template refuses"):
        Tokenizer(tmp_path, ESConfig(), tokenizer).encode([[USER], [USER, USER]])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "what is"}, {"type": "text", "text": " red"}], "what is red"),
        (["what ", "is red"], "what is red"),
        ([], ""),
        (None, ""),
        ("what is red", "what is red"),
    ],
)
def test_content_in_parts_or_none_is_text(content, text):
    assert chat().render([{"role": "user", "content": content}]) == f"user {text} assistant "


def test_a_message_without_content_is_empty():
    assert (
        chat().render([USER, {"role": "assistant"}, USER])
        == "user what is red assistant  user what is red assistant "
    )


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image", "url": "cat.png"}],
        [{"type": "text", "text": None}],
        7,
        {"text": "x"},
        b"cat",
        [3],
    ],
)
def test_content_that_is_not_text_is_refused(content):
    with pytest.raises(DataError, match="a message's content"):
        chat().render([{"role": "user", "content": content}])


def test_empty_fields_that_a_table_added_do_not_reach_the_template():
    calls = "{% if 'tool_calls' in m %}{% for call in m['tool_calls'] %}x{% endfor %}{% endif %}"
    template = "{% for m in messages %}" + calls + "{{ m['content'] }}{% endfor %}"
    assert chat(template).render([USER | {"tool_calls": None, "name": None}]) == "what is red"


def test_tool_calls_that_a_template_ignores_are_logged_once(caplog):
    one = chat()
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "add", "content": "4"},
    ]
    for _ in range(2):
        assert one.render(messages) == "user what is red assistant  tool 4 assistant "
    assert [record.message for record in caplog.records] == [
        "the model's chat template ignores tool_calls, so the prompts lack them"
    ]


def test_template_settings_reach_the_template():
    assert chat("{{ mood }}", mood="blue").render([USER]) == "blue"
