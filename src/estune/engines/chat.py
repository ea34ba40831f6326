"""Turn a conversation into text with a model's chat template.

Many templates accept no system message, and most accept only text. Those of models that see expect
parts, which are texts and images. A conversation is rewritten for the template if nothing gets
lost. Otherwise it is refused.
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

    Args:
        template: used instead of the tokenizer's own.
        sees: whether the model takes images; then messages are rendered as parts.
    """

    def __init__(
        self,
        tokenizer: Any,
        settings: Mapping[str, Any],
        template: Any = None,
        *,
        sees: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._settings = dict(settings)
        self._own_template = template
        if template:
            self._settings.setdefault("chat_template", template)
        self._sees = sees
        self._logged: set[str] = set()

    @property
    def _template(self) -> Any:
        return self._own_template or getattr(self._tokenizer, "chat_template", None)

    def render(self, prompt: Sequence[Mapping[str, Any]]) -> str:
        """Return the text that the model sees, with the template's marks where images are.

        Raises:
            DataError: there is no template, it refuses the conversation, or a message holds
                something that the model does not take.
        """
        if not self._template:
            raise DataError(
                "the prompts are conversations, but the model's tokenizer has no chat template; "
                "use plain text prompts"
            )
        messages = [_plain(message, sees=self._sees) for message in prompt]
        self._check_tools(messages)
        if not self._sees:
            return self._fitted(messages)
        text = self._fitted([message | {"content": _parts(message)} for message in messages])
        if not any(str(_parts(message)) in text for message in messages if _parts(message)):
            return text
        if any(isinstance(message["content"], list) for message in messages):
            raise DataError("the model's chat template does not show images")
        return self._fitted(messages)  # the template takes text, and showed the list of parts

    def _fitted(self, messages: Messages) -> str:
        text = ""
        refused = None
        try:
            text = self._rendered(messages)
        except DataError as error:
            refused = error
        folded = _folded(messages)
        if folded and (refused or not _shows(text, messages[0])):
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
        if not _shows(text, folded[0]):
            return ""
        self._log_once(
            "the model's chat template takes no system message, so its text goes before that of "
            "the first user message"
        )
        return text

    def _check_tools(self, messages: Messages) -> None:
        used = any("tool_calls" in message for message in messages)
        if used and "tool_calls" not in str(self._template):
            self._log_once("the model's chat template ignores tool_calls, so the prompts lack them")

    def _log_once(self, line: str) -> None:
        if line not in self._logged:
            self._logged.add(line)
            logger.warning(line)


def _plain(message: Mapping[str, Any], *, sees: bool) -> dict[str, Any]:
    """Return the message without None, which tables add as fields.

    Its content becomes text, or a list of texts and images if it holds an image.
    """
    kept = {name: value for name, value in message.items() if value is not None}
    return kept | {"content": _content(message.get("content"), sees=sees)}


def _content(content: Any, *, sees: bool) -> Any:
    """Return a message's content as text, or as a list of texts and images if it has an image."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        parts = [_part(part, sees=sees) for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
        return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    raise DataError(
        f"a message's content is a {type(content).__name__}; "
        "it must be text, or a list of parts with text"
    )


def _part(part: Any, *, sees: bool) -> Any:
    """Return a part's text, or the mark of an image."""
    if isinstance(part, str):
        return part
    fields = part if isinstance(part, Mapping) else {}
    if isinstance(fields.get("text"), str):
        return str(fields["text"])
    kind = fields.get("type", "unknown")
    if kind == "image" and sees:
        return {"type": "image"}
    taken = "text and images" if sees else "text"
    raise DataError(
        f"a message's content has a part of type {kind!r}; only parts with {taken} are supported"
    )


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the message's content as parts; an empty one has none."""
    content = message["content"]
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _texts(message: Mapping[str, Any]) -> list[str]:
    return [part["text"].strip() for part in _parts(message) if "text" in part]


def _shows(text: str, message: Mapping[str, Any]) -> bool:
    """Whether `text` contains all that the message says."""
    return all(said in text for said in _texts(message))


def _folded(messages: Messages) -> Messages | None:
    """Return the conversation with the system message's text moved into the first user message.

    Return None if it does not begin with a system and a user message.
    """
    if [message.get("role") for message in messages[:2]] != ["system", "user"]:
        return None
    system, user, *rest = messages
    if isinstance(system["content"], str) and isinstance(user["content"], str):
        return [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]
    before = [{"type": "text", "text": f"{said}\n\n"} for said in _texts(system)]
    return [user | {"content": [*before, *_parts(user)]}, *rest]
