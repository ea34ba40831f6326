"""Run attacks in a sandbox; print as JSON what each printed and what it changed outside.

python attack_child.py SANDBOX < JSON of attacks by name
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from attacks import PRELUDE

from estune.rewards.sandbox import KINDS, Limits
from estune.rewards.sandbox.baits import baits

LIMITS = Limits(seconds=4.0, cpu_seconds=4.0, memory=256 << 20, processes=64, disk=64 << 20)


def main() -> None:
    os.environ["SECRET_TOKEN"] = "hunter2"
    sandbox = KINDS[sys.argv[1]]()
    attacks = json.load(sys.stdin)
    with ThreadPoolExecutor(2) as threads:
        reports = threads.map(lambda source: attack(sandbox, source), attacks.values())
        print(json.dumps(dict(zip(attacks, reports, strict=True))))


def attack(sandbox, source: str) -> dict:
    with baits() as placed:
        started = time.monotonic()
        outcome = sandbox.run(
            f"{PRELUDE}\nprint('ready', flush=True)\n{source}",
            json.dumps(placed.locations).encode(),
            LIMITS,
        )
        return {
            "output": outcome.output[:2000].decode(errors="replace"),
            "size": len(outcome.output),
            "errors": outcome.errors[-500:].decode(errors="replace"),
            "status": outcome.status,
            "seconds": time.monotonic() - started,
            "touched": placed.touched(),
        }


if __name__ == "__main__":
    main()
