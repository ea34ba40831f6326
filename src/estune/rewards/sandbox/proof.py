"""Prove that a sandbox holds: attack it in every known way, and require that all attacks fail.

attempts.py attacks files, processes and sockets outside the sandbox, some of which are baits
(baits.py) that show whether they were touched. The other programs, which stand below, try to exceed
a limit each. A program that exceeds its limit prints "exceeded" at its end; the sandbox must end it
before. All programs run at the same time.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from estune.common.visible import one_line
from estune.rewards.sandbox.baits import baits
from estune.rewards.sandbox.interface import Limits, Sandbox, Unusable

_MIB = 1 << 20
_LIMITS = Limits(seconds=10, cpu_seconds=10, memory=256 * _MIB, processes=16, disk=8 * _MIB)
_ATTEMPTS = Path(__file__).with_name("attempts.py")
_SUCCESS = b"exceeded"

# Four children allocate 96 MiB each. Three of them together exceed the limit of 256 MiB. They sleep
# because supervise.py measures their sum only at intervals.
_CHILDREN_ALLOCATE = """
import mmap, os, time
reader, writer = os.pipe()
for n in range(4):
    if os.fork() == 0:
        {allocate}
        os.write(writer, b'1')
        time.sleep(0.4)
        os._exit(0)
os.close(writer)
count = 0
while count < 3 and (more := os.read(reader, 4)):
    count += len(more)
time.sleep(0.2)
if count >= 3:
    print('exceeded', flush=True)
"""
_CHILDREN = _CHILDREN_ALLOCATE.format(allocate="block = b'x' * (96 << 20)")
_SHARED = _CHILDREN_ALLOCATE.format(
    allocate="block = mmap.mmap(-1, 96 << 20); [block.write(b'x' * (1 << 20)) for n in range(96)]",
)
_MEMFD = """
import os
files = [os.memfd_create('x') for n in range(32)]
for file in files:
    os.write(file, b'x' * (16 << 20))
print('exceeded', flush=True)
"""
_PROCESSES = """
import os, time
for n in range(64):
    if os.fork() == 0:
        time.sleep(60)
time.sleep(0.2)
print('exceeded', flush=True)
"""
# Half of the files are removed while they are open: they occupy the disk but are in no folder.
_DISK = """
import os, time
files = []
for n in range(8):
    file = open(str(n), 'wb')
    if n % 2:
        os.unlink(str(n))
    file.write(b'x' * (4 << 20))
    file.flush()
    files.append(file)
time.sleep(0.2)
print('exceeded', flush=True)
"""
_EXCESSES = {
    "take more memory with its children": _CHILDREN,
    "take more memory by memfd": _MEMFD,
    "take more memory by shared maps": _SHARED,
    "start more processes": _PROCESSES,
    "write more to the disk": _DISK,
}


def prove(sandbox: Sandbox) -> None:
    """Attack `sandbox` from inside.

    Raises:
        Unusable: the sandbox does not work, or an attack succeeded; the message names it.
    """
    with ThreadPoolExecutor(len(_EXCESSES) + 1) as threads:
        attempts = threads.submit(_prove_against_attempts, sandbox)
        excesses = {
            name: threads.submit(sandbox.run, program, b"", _LIMITS)
            for name, program in _EXCESSES.items()
        }
    attempts.result()
    for name, outcome in excesses.items():
        if _SUCCESS in outcome.result().output:
            raise Unusable(_message(sandbox, name))


def _message(sandbox: Sandbox, name: str) -> str:
    return f"{sandbox.name}: a program in it could {name}"


def _prove_against_attempts(sandbox: Sandbox) -> None:
    with baits() as placed:
        locations = json.dumps(placed.locations).encode()
        outcome = sandbox.run(_ATTEMPTS.read_text(), locations, _LIMITS)
        *succeeded, last = outcome.output.decode(errors="replace").split("\n")[:-1] or [""]
        if last != "done":
            raise Unusable(
                f"{sandbox.name}: programs don't run in it ({_last_line(outcome.errors)})"
            )
        if succeeded := [*succeeded, *placed.touched()]:
            raise Unusable(_message(sandbox, succeeded[0]))


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").split("\n")
    messages = [one_line(line, 200) for line in lines if line.strip()]
    return messages[-1] if messages else "without a message"
