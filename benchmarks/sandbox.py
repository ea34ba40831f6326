"""Time a harmless program in each sandbox, relative to the same program in plain Python.

    python -m benchmarks.sandbox [--json]

    NAME_over_plain       time of a program that prints a number, in the sandbox ÷ in plain Python
    NAME_extra_seconds    the difference; at most 0.1
    NAME_proof_seconds    time of the sandbox's proof, which runs once per run; at most 2

NAME is bubblewrap or sandlock. If this machine lacks one, the reason replaces its figures.
"""

import subprocess
from collections.abc import Callable

from benchmarks.common import Figures, best_of, options, show
from estune.rewards.sandbox import KINDS, Limits, Sandbox, launch
from estune.rewards.sandbox.interface import Unusable
from estune.rewards.sandbox.proof import prove

_PROGRAM = "print(1)"


def main() -> None:
    asked = options(__doc__)
    figures: dict[str, float | str] = {}
    for name, kind in KINDS.items():
        figures |= _cost(name, kind, 2 if asked.quick else 15)
    show(figures, asked.json)


def _cost(name: str, kind: Callable[[], Sandbox], times: int) -> Figures:
    try:
        sandbox = kind()
    except Unusable as error:
        return {f"{name}_over_plain": str(error)}
    plain, inside = best_of(times, _plain, lambda: _inside(sandbox))
    (proof,) = best_of(2, lambda: prove(sandbox))
    return {
        f"{name}_over_plain": inside / plain,
        f"{name}_extra_seconds": inside - plain,
        f"{name}_proof_seconds": proof,
    }


def _plain() -> None:
    subprocess.run(
        [launch.interpreter(), "-I", "-S", "-c", _PROGRAM], capture_output=True, check=True
    )


def _inside(sandbox: Sandbox) -> None:
    sandbox.run(_PROGRAM, b"", Limits())


if __name__ == "__main__":
    main()
