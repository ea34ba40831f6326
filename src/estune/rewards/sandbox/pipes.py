"""Write and read the standard streams of a process without blocking on any of them."""

import os
import selectors
from contextlib import suppress
from typing import IO, Protocol

_CHUNK = 1 << 16  # bytes per read or write
_FINAL_READS = 16  # enough chunks to empty the pipes of a process that has ended
_MAX_ERRORS = 4096  # bytes of standard error that are kept


class Piped(Protocol):
    """A process with pipes."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None
    stderr: IO[bytes] | None


class Pipes:
    """Writes `stdin` to `process`, and keeps the first `max_output` bytes that it prints.

    Further output is read and discarded, because a full pipe would block the process. Leaving the
    context closes the pipes.
    """

    def __init__(self, process: Piped, stdin: bytes, max_output: int) -> None:
        assert process.stdin and process.stdout and process.stderr
        self.output, self.errors = bytearray(), bytearray()
        self._buffers = {
            process.stdout.fileno(): (self.output, max_output),
            process.stderr.fileno(): (self.errors, _MAX_ERRORS),
        }
        streams = (process.stdin, process.stdout, process.stderr)
        self._streams = {stream.fileno(): stream for stream in streams}
        self._unwritten = memoryview(stdin)
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

    def transfer(self, seconds: float) -> bool:
        """Wait up to `seconds` for a pipe that is ready, then write or read one chunk.

        Return False, at once, if both output pipes are closed already.
        """
        if not self._buffers:
            return False
        for key, events in self._selector.select(seconds):
            self._write(key) if events & selectors.EVENT_WRITE else self._read(key)
        return True

    def drain(self) -> None:
        """Read what is left in the pipes of a process that has ended."""
        for _ in range(_FINAL_READS):
            self.transfer(0)

    def _write(self, pipe: selectors.SelectorKey) -> None:
        with suppress(BrokenPipeError):  # the program need not read its input
            written = os.write(pipe.fd, self._unwritten[:_CHUNK])
            self._unwritten = self._unwritten[written:]
            if self._unwritten:
                return
        self._close(pipe)

    def _read(self, pipe: selectors.SelectorKey) -> None:
        data = os.read(pipe.fd, _CHUNK)
        buffer, max_size = self._buffers[pipe.fd]
        buffer += data[: max_size - len(buffer)]
        if not data:
            del self._buffers[pipe.fd]
            self._close(pipe)

    def _close(self, pipe: selectors.SelectorKey) -> None:
        self._selector.unregister(pipe.fileobj)
        self._streams[pipe.fd].close()
