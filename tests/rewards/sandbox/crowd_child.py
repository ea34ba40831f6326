"""Run a program in a sandbox for a user with more processes than it may have; print its output.

python crowd_child.py SANDBOX < JSON of the program
"""

import json
import subprocess
import sys

from estune.rewards.sandbox import KINDS, Limits


def main() -> None:
    sandbox = KINDS[sys.argv[1]]()
    source, limits = json.load(sys.stdin), Limits(seconds=20, processes=24)
    crowd = [subprocess.Popen(["sleep", "60"]) for _ in range(40)]
    try:
        print(json.dumps(sandbox.run(source, b"", limits).output.decode()))
    finally:
        for each in crowd:
            each.kill()
            each.wait()


if __name__ == "__main__":
    main()
