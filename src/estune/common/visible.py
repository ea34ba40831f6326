"""Show text of models, data, files and reward functions as text, never as terminal commands.

A control character can clear the screen, rename the window or overwrite a line; a bidirectional
override displays text in a different order. Both are removed from everything that people read:
stdout, stderr and files such as `reward_error.txt`. Files for programs (JSON, Parquet) keep the
exact text, escaped.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from estune.errors import clean


def one_line(text: object, most: int | None = None) -> str:
    """Return the object's text as one clean line of at most `most` characters.

    If str() fails, the line names the object's type.
    """
    try:
        line = clean(" ".join(str(text).split()))
    except BaseException as error:  # a __str__ of the user's, or an int of too many digits
        line = f"{_kind(text)} without a text ({_kind(error)})"
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def table_cell(text: object) -> str:
    """Return text for a cell of a Markdown table, where bars and line ends are special."""
    return one_line(text).replace("|", "\\|")


def _kind(thing: object) -> str:
    return clean(type(thing).__name__)


class CleanStream:
    """A text stream that shows only clean text, with question marks for what its encoding lacks.

    A progress bar begins each write with a carriage return. On a terminal it is kept; in a file it
    becomes a line end. rich writes control sequences of its own, so it finds the stream below by
    `rich_proxied_file`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        returns = text.startswith("\r") and not text.startswith("\r\n")
        start = ("\r" if self._stream.isatty() else "\n") if returns else ""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(start + clean(text).encode(encoding, "replace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    @property
    def rich_proxied_file(self) -> Any:
        return getattr(self._stream, "rich_proxied_file", self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def wrap_streams() -> None:
    """Clean everything that is printed from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, CleanStream):
            setattr(sys, name, cast(TextIO, CleanStream(stream)))


@contextmanager
def clean_streams() -> Iterator[None]:
    """Clean everything printed in the block, and the traceback of its error."""
    before = sys.stdout, sys.stderr
    wrap_streams()
    yield
    sys.stdout, sys.stderr = before
