"""Turn a conversation into text with a model's chat template.

Many templates accept no system message, and most accept only text. A conversation is rewritten for
the template if nothing gets lost. Otherwise it is refused.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from estune.common.guard import guarded
from estune.errors import DataError

logger = logging.getLogger(__name__)

Messages = list[dict[str, Any]]


class Chat:
    """The chat template of `tokenizer`, and the settings to pass to it.

    It logs once if conversations are changed, beyond rendering them.
    """

    def __init__(self, tokenizer: Any, settings: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._logged: set[str] = set()

    def render(self, prompt: Sequence[Mapping[str, Any]]) -> str:
        """Return the text that the model sees.

        Raises:
            DataError: there is no template, it refuses the conversation, or a message holds
                something other than text.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise DataError(
                "the prompts are conversations, but the model's tokenizer has no chat template; "
                "use plain text prompts"
            )
        messages = [_plain(message) for message in prompt]
        self._check_tools(messages)
        text = ""
        refused = None
        try:
            text = self._rendered(messages)
        except DataError as error:
            refused = error
        folded = _folded(messages)
        if folded and (refused or messages[0]["content"].strip() not in text):
            text = self._without_system(folded) or text
        if refused and not text:
            raise refused
        return text

    def _rendered(self, messages: Messages) -> str:
        with guarded(
            DataError,
            "the model's chat template refuses this conversation",
            "change its messages, or the template",
        ):
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self._settings
            )
        if not isinstance(text, str):
            raise DataError(
                f"the tokenizer's chat template returned a {type(text).__name__}, not text; "
                "use plain text prompts"
            )
        return text

    def _without_system(self, folded: Messages) -> str:
        """Render `folded`; return "" if the template refuses it or drops its first message."""
        try:
            text = self._rendered(folded)
        except DataError:
            return ""
        if folded[0]["content"].strip() not in text:
            return ""
        self._log_once(
            "the model's chat template takes no system message, so its text goes before that of "
            "the first user message"
        )
        return text

    def _check_tools(self, messages: Messages) -> None:
        used = any("tool_calls" in message for message in messages)
        if used and "tool_calls" not in str(self._tokenizer.chat_template):
            self._log_once("the model's chat template ignores tool_calls, so the prompts lack them")

    def _log_once(self, line: str) -> None:
        if line not in self._logged:
            self._logged.add(line)
            logger.warning(line)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message with its content as text, and without None, which tables add as fields."""
    kept = {name: value for name, value in message.items() if value is not None}
    return kept | {"content": _text(message.get("content"))}


def _text(content: Any) -> str:
    """Return a message's content as text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return "".join(map(_part, content))
    raise DataError(
        f"a message's content is a {type(content).__name__}; "
        "it must be text, or a list of parts with text"
    )


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    fields = part if isinstance(part, Mapping) else {}
    if isinstance(fields.get("text"), str):
        return str(fields["text"])
    kind = fields.get("type", "unknown")
    raise DataError(
        f"a message's content has a part of type {kind!r}; only parts with text are supported"
    )


def _folded(messages: Messages) -> Messages | None:
    """Return the conversation with the system message's text moved into the first user message.

    Return None if it does not begin with a system and a user message.
    """
    if [message.get("role") for message in messages[:2]] != ["system", "user"]:
        return None
    system, user, *rest = messages
    return [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]
