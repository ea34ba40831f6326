"""The parts of `benchmarks/gpu_all.sh`, which puts to the test on one GPU what estune promises of GPUs.

Each part is a process of its own. It prints a JSON object as soon as it knows something, so that one that is stopped
leaves what it has found.
"""

import json


def tell(figures: dict[str, float | str]) -> None:
    """Print figures, at once."""
    print(json.dumps(figures), flush=True)
