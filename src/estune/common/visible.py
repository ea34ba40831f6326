"""Remove control characters from everything that people read.

Text from models, data and reward functions may contain control characters, which can clear the
screen, rename the window or overwrite a line, and bidirectional overrides, which display text in a
different order. Both are removed from stdout, stderr and files such as `reward_error.txt`. Files
for programs (JSON, Parquet) keep the exact text, escaped.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from estune.errors import clean


def one_line(text: object, most: int | None = None) -> str:
    """Return str(text) on one line without control characters, cut to `most` characters if given.

    If str() raises, the line names the object's type instead.
    """
    try:
        line = clean(" ".join(str(text).split()))
    except BaseException as error:  # a user's __str__ may raise; an int may have too many digits
        line = f"{_kind(text)} without a text ({_kind(error)})"
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def table_cell(text: object) -> str:
    """Return str(text) for a cell of a Markdown table: on one line, with bars escaped."""
    return one_line(text).replace("|", "\\|")


def _kind(thing: object) -> str:
    return clean(type(thing).__name__)


class CleanStream:
    """A text stream that removes control characters before it writes to `stream`.

    Characters that the stream's encoding does not have become question marks. A carriage return at
    the start of a write, as progress bars send it, is kept on a terminal and becomes a line end
    elsewhere. rich needs its own control sequences, so `rich_proxied_file` gives it `stream`.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        start = ""
        if text.startswith("\r") and not text.startswith("\r\n"):
            start = "\r" if self._stream.isatty() else "\n"
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
    """Wrap stdout and stderr in a CleanStream, unless they are wrapped already."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, CleanStream):
            setattr(sys, name, cast(TextIO, CleanStream(stream)))


@contextmanager
def clean_streams() -> Iterator[None]:
    """Wrap stdout and stderr in a CleanStream while the block runs.

    After an error they stay wrapped, because Python has yet to print the traceback.
    """
    before = sys.stdout, sys.stderr
    wrap_streams()
    yield
    sys.stdout, sys.stderr = before
