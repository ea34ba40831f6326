"""What a program in a sandbox must not reach: a file, sockets and a process, laid out by the proof
and looked at afterwards.
"""

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

_HOME_FILES = 8  # files of the user's home that are tried
_CONTENT = "bait"


@dataclass(frozen=True)
class Baits:
    """Where they are, as the attempts are told; and what became of them."""

    told: dict[str, Any]
    process: "subprocess.Popen[bytes]"
    sockets: dict[str, socket.socket]

    def taken(self) -> list[str]:
        """The names of attempts that show outside."""
        found = [name for name, listener in self.sockets.items() if _heard(listener)]
        if self.process.poll() is not None:
            found.append("signal a process outside")
        if Path(self.told["file"]).read_text() != _CONTENT:
            found.append("write a file outside")
        if Path(self.told["new"]).exists():
            found.append("make a file outside")
        return found


@contextlib.contextmanager
def baits() -> Iterator[Baits]:
    with (
        tempfile.TemporaryDirectory(prefix="estune-proof-") as folder,
        contextlib.ExitStack() as opened,
    ):
        file = Path(folder, "file")
        file.write_text(_CONTENT)
        os.chmod(folder, 0o777)  # nothing but the sandbox stands in the way, whoever the program is
        os.chmod(file, 0o666)
        abstract = f"\0estune-proof-{os.urandom(8).hex()}"
        listeners = {
            "connect by TCP": _listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "send by UDP": _listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "connect to a unix socket": _listener(
                socket.AF_UNIX, socket.SOCK_STREAM, f"{folder}/socket"
            ),
            "connect to an abstract unix socket": _listener(
                socket.AF_UNIX, socket.SOCK_STREAM, abstract
            ),
        }
        os.chmod(f"{folder}/socket", 0o777)
        for listener in listeners.values():
            opened.enter_context(listener)
        process = opened.enter_context(_sleeper())
        tcp, udp, _, _ = listeners.values()
        told = {
            "file": str(file),
            "new": f"{folder}/new",
            "home": _home_files(),
            "process": process.pid,
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": f"{folder}/socket",
            "abstract": abstract,
        }
        yield Baits(told, process, listeners)


def _listener(family: int, kind: int, address: Any) -> socket.socket:
    made = socket.socket(family, kind)
    made.setblocking(False)
    made.bind(address)
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


def _heard(listener: socket.socket) -> bool:
    try:
        listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _sleeper() -> "Iterator[subprocess.Popen[bytes]]":
    """A process that waits for its input to end, which it does with this process, however that
    ends.
    """
    command = [interpreter(), "-I", "-S", "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _home_files() -> list[str]:
    """Some files of the user's home that this process may read."""
    home = os.path.expanduser("~")
    found: list[str] = []
    for folder in (home, f"{home}/.ssh", f"{home}/.cache/huggingface"):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            files = [entry.path for entry in entries if entry.is_file()]
            found += [path for path in files if os.access(path, os.R_OK)]
    return found[:_HOME_FILES]
