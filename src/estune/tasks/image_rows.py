"""Put a row's images into its conversation, by TRL's rules.

The images are those of the column `images`, or else `image`. Each fills a part {"type": "image"} of
the prompt, in order; if the first user message is plain text, they come before it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from estune.common.images import COLUMNS, ImageFile, image_file, images_in, is_placed
from estune.common.types import Row
from estune.errors import DataError

Message = dict[str, Any]


def with_images(row: Row, base: Path = Path()) -> Row:
    """Return the row with its images in place; a row without images is returned as it is.

    So is a prompt of text, which has no place for an image. Relative paths begin at `base`.

    Raises:
        DataError: an image cannot be read, or the prompt has another number of places for images.
    """
    if images_in(row["prompt"]):  # they are in place already
        return row
    prompt = row["prompt"]
    if not _is_conversation(prompt):
        return row
    _check_kinds(prompt)
    columns = _columns(row, base)
    images = next((columns[name] for name in reversed(COLUMNS) if name in columns), [])
    if not images and not any(_is_image(part) for message in prompt for part in _parts(message)):
        return row
    return row | _values(columns) | {"prompt": _placed(prompt, images, base)}


def check_shown(rows: Sequence[Row], what: str) -> None:
    """Check that a model that sees is shown each row's images; `what` names the rows.

    Raises:
        DataError: a row with an image has a prompt of text.
    """
    for index, row in enumerate(rows):
        held = any(row.get(name) is not None for name in COLUMNS)
        if held and not _is_conversation(row["prompt"]):
            raise DataError(
                f"{what}: row {index}: has an image, so its prompt must be a conversation, such as "
                '[{"role": "user", "content": "…"}]; the chat template shows where images go'
            )


def with_image_columns(row: Row, base: Path = Path()) -> Row:
    """Return the row with the images of its columns; its prompt is not looked at.

    Raises:
        DataError: an image cannot be read.
    """
    return row | _values(_columns(row, base))


def _check_kinds(prompt: list[Message]) -> None:
    for part in (part for message in prompt for part in _parts(message)):
        kind = str(part.get("type")) if isinstance(part, Mapping) else ""
        if kind.startswith(("video", "audio", "input_audio")):
            raise DataError(
                f"its prompt has a part of type {kind!r}; only text and images are supported"
            )


def _columns(row: Row, base: Path) -> dict[str, list[ImageFile]]:
    return {name: _column(name, row[name], base) for name in COLUMNS if name in row}


def _values(columns: dict[str, list[ImageFile]]) -> Row:
    """Return the columns as a row has them: one image in `image`, a list in `images`."""
    one = next(iter(columns.get("image", [])), None)
    values: Row = {"image": one, "images": columns.get("images")}
    return {name: values[name] for name in columns}


def _column(name: str, value: Any, base: Path) -> list[ImageFile]:
    if value is None:
        return []
    if name == "image":
        return [_read(value, f"column {name!r}", base)]
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise DataError("column 'images' must be a list of images; one image goes into 'image'")
    return [_read(one, f"column {name!r}", base) for one in value]


def _read(value: Any, where: str, base: Path) -> ImageFile:
    try:
        return image_file(value, base)
    except DataError as error:
        raise DataError(f"{where}: {error}; fix it, or rename the column") from None


def _placed(prompt: list[Message], images: list[ImageFile], base: Path) -> list[Message]:
    messages = _with_places(prompt, len(images))
    places = sum(_is_place(message, part) for message in messages for part in _parts(message))
    if places != len(images):
        raise DataError(
            f"has {len(images)} images for {places} places in its prompt; "
            'give one image per part {"type": "image"}'
        )
    left = iter(images)
    return [_filled(message, left, base) for message in messages]


def _with_places(prompt: list[Message], count: int) -> list[Message]:
    """Return the conversation with a place per image before its first user message of text."""
    messages = list(prompt)
    for index, message in enumerate(messages):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            places: list[Any] = [{"type": "image"} for _ in range(count)]
            text = {"type": "text", "text": message["content"]}
            messages[index] = message | {"content": [*places, text]}
            break
    return messages


def _filled(message: Message, left: Any, base: Path) -> Message:
    if not _parts(message):
        return message

    def fill(part: Any) -> Any:
        if _is_place(message, part):
            return {"type": "image", "image": next(left)}
        if not _is_image(part) or is_placed(part):
            return part
        content = part.get("image") if part.get("image") is not None else part.get("path")
        return {"type": "image", "image": _read(content, "an image of its prompt", base)}

    return message | {"content": [fill(part) for part in message["content"]]}


def _is_place(message: Message, part: Any) -> bool:
    """Whether `part` waits for an image of the row."""
    empty = _is_image(part) and part.get("image") is None and part.get("path") is None
    return empty and message.get("role") != "tool"


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"


def _parts(message: Message) -> Sequence[Any]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _is_conversation(prompt: Any) -> bool:
    return isinstance(prompt, list) and len(prompt) > 0 and isinstance(prompt[0], dict)
