"""The process that sandlock's supervisor lives in while one program runs.

    keeper.py PARENT sandlock_host.py PACKAGES POLICY COMMAND…   (POLICY: sandlock's settings, as JSON)

It gives up the capabilities of root first, which sandlock would pass on to the program.
"""

import ctypes
import importlib
import json
import os
import sys

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES_V3 = 0x20080522


def main() -> None:
    packages, policy, *command = sys.argv[1:]
    _give_up_capabilities()
    sys.path.append(packages)
    status = importlib.import_module("sandlock").Sandbox(**json.loads(policy)).run_interactive(command)
    os._exit(status if status >= 0 else 128 - status)


def _give_up_capabilities() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "capabilities could not be given up")


if __name__ == "__main__":
    main()
