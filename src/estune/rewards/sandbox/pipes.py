"""The standard streams of a process, written and read without waiting for any of them."""

import os
import selectors
from contextlib import suppress
from typing import IO, Protocol

_CHUNK = 1 << 16
_LAST_READS = 16  # of what an ended process left in its pipes
_ERRORS = 4096  # bytes of standard error that are kept


class Piped(Protocol):
    """A process with pipes."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None


class Pipes:
    """Writes `given` to `process`, and keeps the first `output` bytes that it prints.

    The rest is read and forgotten. Leaving the context closes the pipes.
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
        for stream in streams:
            event = selectors.EVENT_WRITE if stream is process.stdin else selectors.EVENT_READ
            self._selector.register(stream, event)
            os.set_blocking(stream.fileno(), False)

    def __enter__(self) -> "Pipes":
        return self

    def __exit__(self, *error: object) -> None:
        self._selector.close()
        for stream in self._streams.values():
            stream.close()

    def serve(self, seconds: float) -> bool:
        """Write and read what `seconds` allow; return False once nothing can be read."""
        if self._kept:
            for key, events in self._selector.select(seconds):
                self._write(key) if events & selectors.EVENT_WRITE else self._read(key)
            return True
        return False

    def drain(self) -> None:
        """Read what a process left behind when it ended."""
        for _ in range(_LAST_READS):
            self.serve(0)

    def _write(self, pipe: selectors.SelectorKey) -> None:
        with suppress(BrokenPipeError):  # the program may not read its input
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
