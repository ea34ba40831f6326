"""The process that loads sandlock once and forks for each program.

    python -I -S sandlock_host.py REAPER LAUNCHER PACKAGES   (standard input: a socket)

sandlock runs its supervisor in the process that starts a program, and takes long to load. So this
process loads it once. Each message on the socket starts one program: it contains sandlock's
settings and the command as JSON, and four file descriptors, three for the program's standard
streams and one for the report of its reaper (reaper.py). sandlock would pass root's capabilities on
to the program, so this process gives them up first.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
from typing import Any

_MAX_MESSAGE = 1 << 17  # bytes


def main() -> None:
    reaper, launcher, packages = sys.argv[1:]
    runpy.run_path(launcher)["give_up_capabilities"]()
    fork_under_reaper = runpy.run_path(reaper)["fork_under_reaper"]
    sys.path.append(packages)
    sandbox = importlib.import_module("sandlock").Sandbox
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # a reaper reports its end, so nobody waits for it
    host, requests = os.getpid(), socket.socket(fileno=0)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MAX_MESSAGE, 4)
        if not message:  # the client has ended; now the reapers end too, with their programs
            return
        if os.fork() == 0:
            _take_streams(*descriptors[:3])
            fork_under_reaper(host, descriptors[3])
            os.closerange(3, 256)
            os._exit(_run(sandbox, **json.loads(message)))
        for each in descriptors:
            os.close(each)


def _take_streams(*streams: int) -> None:
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)


def _run(sandbox: Any, policy: dict[str, Any], command: list[str]) -> int:
    status = int(sandbox(**policy).run_interactive(command))
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    main()
