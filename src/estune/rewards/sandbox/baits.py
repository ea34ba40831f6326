"""Place a file, sockets and a process outside the sandbox as baits, and see what was touched."""

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estune.rewards.sandbox.launch import interpreter

_MAX_HOME_FILES = 8
_CONTENT = "bait"


@dataclass(frozen=True)
class Baits:
    """The baits of one proof.

    locations: where they are; attempts.py gets this dictionary as JSON.
    process: a process that must not receive a signal.
    sockets: name of an attempt → the listening socket that must not hear from it.
    """

    locations: dict[str, Any]
    process: "subprocess.Popen[bytes]"
    sockets: dict[str, socket.socket]

    def touched(self) -> list[str]:
        """Return the names of the attempts that reached a bait."""
        found = [name for name, listener in self.sockets.items() if _was_contacted(listener)]
        if self.process.poll() is not None:
            found.append("signal a process outside")
        if Path(self.locations["file"]).read_text() != _CONTENT:
            found.append("write a file outside")
        if Path(self.locations["new"]).exists():
            found.append("make a file outside")
        return found


@contextlib.contextmanager
def baits() -> Iterator[Baits]:
    """Place the baits, and remove them after the block."""
    with (
        tempfile.TemporaryDirectory(prefix="estune-proof-") as folder,
        contextlib.ExitStack() as stack,
    ):
        file = Path(folder, "file")
        file.write_text(_CONTENT)
        # Any user may change these, so that nothing but the sandbox protects them.
        os.chmod(folder, 0o777)
        os.chmod(file, 0o666)
        abstract = f"\0estune-proof-{os.urandom(8).hex()}"
        unix, local = (socket.AF_UNIX, socket.SOCK_STREAM), ("127.0.0.1", 0)
        listeners = {
            "connect by TCP": _listener(socket.AF_INET, socket.SOCK_STREAM, local),
            "send by UDP": _listener(socket.AF_INET, socket.SOCK_DGRAM, local),
            "connect to a unix socket": _listener(*unix, f"{folder}/socket"),
            "connect to an abstract unix socket": _listener(*unix, abstract),
        }
        os.chmod(f"{folder}/socket", 0o777)
        for listener in listeners.values():
            stack.enter_context(listener)
        process = stack.enter_context(_sleeper())
        tcp, udp, _, _ = listeners.values()
        locations = {
            "file": str(file),
            "new": f"{folder}/new",
            "home": _home_files(),
            "process": process.pid,
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": f"{folder}/socket",
            "abstract": abstract,
        }
        yield Baits(locations, process, listeners)


def _listener(family: int, kind: int, address: Any) -> socket.socket:
    listener = socket.socket(family, kind)
    listener.setblocking(False)
    listener.bind(address)
    if kind == socket.SOCK_STREAM:
        listener.listen()
    return listener


def _was_contacted(listener: socket.socket) -> bool:
    try:
        listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _sleeper() -> "Iterator[subprocess.Popen[bytes]]":
    """Start a process that sleeps until its standard input ends, at latest with this process."""
    command = [interpreter(), "-I", "-S", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _home_files() -> list[str]:
    """Return some files in the user's home that this process may read."""
    home = os.path.expanduser("~")
    found: list[str] = []
    for folder in (home, f"{home}/.ssh", f"{home}/.cache/huggingface"):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            files = [entry.path for entry in entries if entry.is_file()]
            found += [path for path in files if os.access(path, os.R_OK)]
    return found[:_MAX_HOME_FILES]
