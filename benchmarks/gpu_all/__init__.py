"""The parts of `benchmarks/gpu_all.sh`, which tests on one GPU what estune promises about GPUs.

Each part runs in its own process. It prints each figure at once, as a JSON object on its own line,
so a part that is stopped early keeps what it has measured.
"""

import json


def print_figures(figures: dict[str, float | str]) -> None:
    """Print figures as one line of JSON, without buffering."""
    print(json.dumps(figures), flush=True)
