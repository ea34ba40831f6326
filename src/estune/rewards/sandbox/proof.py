"""The proof of a sandbox: a fixed list of attempts is made inside it, and all must fail.

Some attempts are detected from outside: a file, a process and sockets are laid out as baits, and
must stay as they were. Others try to exceed an amount; each is a program of its own, which must not
reach its end. All run at the same time.
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
_TOKEN = b"through"

# Each prints "through" once it has exceeded a limit for longer than the time between two looks.
_HOLDERS = """
import mmap, os, time
held, holds = os.pipe()
for n in range(4):
    if os.fork() == 0:
        {hold}
        os.write(holds, b'1')
        time.sleep(0.4)
        os._exit(0)
os.close(holds)
count = 0
while count < 3 and (more := os.read(held, 4)):
    count += len(more)
time.sleep(0.2)
if count >= 3:
    print('through', flush=True)
"""
_CHILDREN = _HOLDERS.format(hold="block = b'x' * (96 << 20)")
_SHARED = _HOLDERS.format(
    hold="block = mmap.mmap(-1, 96 << 20); [block.write(b'x' * (1 << 20)) for n in range(96)]",
)
_MEMFD = """
import os
kept = [os.memfd_create('x') for n in range(32)]
for each in kept:
    os.write(each, b'x' * (16 << 20))
print('through', flush=True)
"""
_PROCESSES = """
import os, time
for n in range(64):
    if os.fork() == 0:
        time.sleep(60)
time.sleep(0.2)
print('through', flush=True)
"""
_DISK = """
import os, time
kept = []
for n in range(8):
    file = open(str(n), 'wb')
    if n % 2:
        os.unlink(str(n))
    file.write(b'x' * (4 << 20))
    file.flush()
    kept.append(file)
time.sleep(0.2)
print('through', flush=True)
"""
_AMOUNTS = {
    "take more memory with its children": _CHILDREN,
    "take more memory by memfd": _MEMFD,
    "take more memory by shared maps": _SHARED,
    "start more processes": _PROCESSES,
    "write more to the disk": _DISK,
}


def prove(sandbox: Sandbox) -> None:
    """Raise Unusable, which says why, if `sandbox` doesn't work or lets a program do something."""
    with ThreadPoolExecutor(len(_AMOUNTS) + 1) as threads:
        rights = threads.submit(_prove_rights, sandbox)
        amounts = {
            name: threads.submit(sandbox.run, program, b"", _LIMITS)
            for name, program in _AMOUNTS.items()
        }
    rights.result()
    for name, ended in amounts.items():
        if _TOKEN in ended.result().output:
            raise Unusable(_verdict(sandbox, name))


def _verdict(sandbox: Sandbox, name: str) -> str:
    return f"{sandbox.name}: a program in it could {name}"


def _prove_rights(sandbox: Sandbox) -> None:
    with baits() as laid:
        outcome = sandbox.run(_ATTEMPTS.read_text(), json.dumps(laid.given).encode(), _LIMITS)
        *through, last = outcome.output.decode(errors="replace").split("\n")[:-1] or [""]
        if last != "done":
            raise Unusable(
                f"{sandbox.name}: programs don't run in it ({_last_line(outcome.errors)})"
            )
        if through := [*through, *laid.taken()]:
            raise Unusable(_verdict(sandbox, through[0]))


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").split("\n")
    said = [one_line(line, 200) for line in lines if line.strip()]
    return said[-1] if said else "without a message"
