"""What models, data, files and reward functions say is shown as text, never as commands to a terminal or a pager.

A control character can clear the screen, rename the window or overwrite a line; a bidirectional
override shows text in another order than it has. Both are left out of whatever a person reads, on
either stream and in files such as `reward_error.txt`. Files for programs (JSON, Parquet) keep the
exact text, escaped.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from estune.errors import clean


def one_line(text: object, most: int | None = None) -> str:
    """The text of an object as one clean line of at most `most` characters.

    Of an object that has no text, its type is named.
    """
    try:
        line = clean(" ".join(str(text).split()))
    except BaseException as error:  # a __str__ of the user's, or an int of too many digits
        line = f"{_kind(text)} without a text ({_kind(error)})"
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def table_cell(text: object) -> str:
    """One cell of a table in Markdown: a bar or a line end in it would make further cells."""
    return one_line(text).replace("|", "\\|")


def _kind(thing: object) -> str:
    return clean(type(thing).__name__)


class CleanStream:
    """A text stream that shows only clean text, with question marks for what its encoding lacks.

    A progress bar begins each write with a carriage return. A terminal gets that one; a file gets a
    line end instead. rich, which writes control sequences of its own making, finds the stream below
    by `rich_proxied_file`.
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
    """Clean whatever is printed from now on; a stream that is clean already stays as it is."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, CleanStream):
            setattr(sys, name, cast(TextIO, CleanStream(stream)))


@contextmanager
def clean_streams() -> Iterator[None]:
    """Clean whatever is printed in the block, and the traceback of an error that leaves it."""
    before = sys.stdout, sys.stderr
    wrap_streams()
    yield
    sys.stdout, sys.stderr = before
