"""The parts of `benchmarks/gpu_all.sh`, which tests on one GPU what estune promises about GPUs.

Each part is a process of its own. It prints figures as soon as it has them, one JSON object per
line, so a part that is stopped early keeps what it has measured.
"""

import json


def print_figures(figures: dict[str, float | str]) -> None:
    """Print figures as one line of JSON, without buffering."""
    print(json.dumps(figures), flush=True)
