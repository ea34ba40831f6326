"""The standard streams of a process, written and read without waiting for any of them."""

import os
import selectors
from contextlib import suppress
from typing import IO, Protocol

_CHUNK = 1 << 16
_LAST_READS = 16  # of what a process left in its pipes
_ERRORS = 4096  # bytes of standard error that are kept


class Piped(Protocol):
    """A process with pipes."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None


class Pipes:
    """Feeds `given` to `process` and keeps the first `output` bytes that it prints; the rest is
    read and forgotten.

    Closes all its pipes in the end.
    """

    def __init__(self, process: Piped, given: bytes, output: int) -> None:
        assert process.stdin and process.stdout and process.stderr
        self.output, self.errors = bytearray(), bytearray()
        self._kept = {
            process.stdout.fileno(): (self.output, output),
            process.stderr.fileno(): (self.errors, _ERRORS),
        }
        streams = (process.stdin, process.stdout, process.stderr)
        self._streams = {stream.fileno(): stream for stream in streams}
        self._left = memoryview(given)
        self._selector = selectors.DefaultSelector()
        self._selector.register(process.stdin, selectors.EVENT_WRITE)
        self._selector.register(process.stdout, selectors.EVENT_READ)
        self._selector.register(process.stderr, selectors.EVENT_READ)
        for key in self._selector.get_map().values():
            os.set_blocking(key.fd, False)

    def __enter__(self) -> "Pipes":
        return self

    def __exit__(self, *error: object) -> None:
        self._selector.close()
        for stream in self._streams.values():
            stream.close()

    def serve(self, seconds: float) -> int:
        """Write and read what is possible within `seconds`; how many pipes were served, -1 once
        none can be read any more.
        """
        if not self._kept:
            return -1
        ready = self._selector.select(seconds)
        for key, events in ready:
            self._write(key) if events & selectors.EVENT_WRITE else self._read(key)
        return len(ready)

    def drain(self) -> None:
        """Read what a process that has ended left behind."""
        for _ in range(_LAST_READS):
            if self.serve(0) <= 0:
                return

    def _write(self, pipe: selectors.SelectorKey) -> None:
        with suppress(BrokenPipeError):  # a program need not read its input
            self._left = self._left[os.write(pipe.fd, self._left[:_CHUNK]) :]
            if self._left:
                return
        self._let_go(pipe)

    def _read(self, pipe: selectors.SelectorKey) -> None:
        data = os.read(pipe.fd, _CHUNK)
        buffer, most = self._kept[pipe.fd]
        buffer += data[: most - len(buffer)]
        if not data:
            del self._kept[pipe.fd]
            self._let_go(pipe)

    def _let_go(self, pipe: selectors.SelectorKey) -> None:
        self._selector.unregister(pipe.fileobj)
        self._streams[pipe.fd].close()
