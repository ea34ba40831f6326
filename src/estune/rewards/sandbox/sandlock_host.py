"""The process in which sandlock is loaded once, and forked for each program.

    python -I -S sandlock_host.py KEEPER PACKAGES   (standard input: a socket, with one message per program)

sandlock's supervisor lives in the process that starts a program, and takes long to load. A message
holds sandlock's settings and the command as JSON, with four descriptors: the program's standard
streams, and one for its keeper's report. The capabilities of root, which sandlock would pass on to
the program, are given up first.
"""

import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from typing import Any

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES_V3 = 0x20080522
_MESSAGE = 1 << 17  # bytes at most


def main() -> None:
    keeper, packages = sys.argv[1:]
    _give_up_capabilities()
    keep = runpy.run_path(keeper)["keep"]
    sys.path.append(packages)
    sandbox = importlib.import_module("sandlock").Sandbox
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a keeper: it reports
    host, requests = os.getpid(), socket.socket(fileno=0)
    while True:
        told, descriptors, _, _ = socket.recv_fds(requests, _MESSAGE, 4)
        if not told:  # whoever wanted programs run is gone; the keepers follow
            return
        if os.fork() == 0:
            _take_streams(*descriptors[:3])
            keep(host, descriptors[3])
            os.closerange(3, 256)
            os._exit(_run(sandbox, **json.loads(told)))
        for each in descriptors:
            os.close(each)


def _take_streams(*streams: int) -> None:
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)


def _run(sandbox: Any, policy: dict[str, Any], command: list[str]) -> int:
    status = int(sandbox(**policy).run_interactive(command))
    return status if status >= 0 else 128 - status


def _give_up_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "capabilities could not be given up")


if __name__ == "__main__":
    main()
