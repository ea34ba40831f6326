"""The process that loads sandlock once and forks for each program.

    python -I -S sandlock_host.py KEEPER LAUNCHER PACKAGES   (standard input: a socket)

sandlock's supervisor lives in the process that starts a program, and takes long to load. Each
message on the socket starts one program: it holds sandlock's settings and the command as JSON, and
four descriptors, the program's standard streams and one for its keeper's report. sandlock would
pass the capabilities of root on to the program, so they are given up first.
"""

import importlib
import json
import os
import runpy
import signal
import socket
import sys
from typing import Any

_MESSAGE = 1 << 17  # bytes at most


def main() -> None:
    keeper, launcher, packages = sys.argv[1:]
    runpy.run_path(launcher)["give_up_capabilities"]()
    keep = runpy.run_path(keeper)["keep"]
    sys.path.append(packages)
    sandbox = importlib.import_module("sandlock").Sandbox
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a keeper: it reports
    host, requests = os.getpid(), socket.socket(fileno=0)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, _MESSAGE, 4)
        if not message:  # the client has ended; the keepers end too
            return
        if os.fork() == 0:
            _take_streams(*descriptors[:3])
            keep(host, descriptors[3])
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
