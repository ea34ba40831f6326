"""Measure requests that arrive while others run, against prompts that are completed together.

    python -m benchmarks.requests [--json]

    together_over_generate_…    new tokens per second of 16 requests that are submitted together
                                ÷ those of one `generate` with the same prompts; at least 0.8
    pairs_over_generate_…       the same when two of them arrive before each step

The names end with the engine: transformers or vllm. Countdown prompts, at most 64 new tokens, one
member. Each engine runs in the environment that users have: vLLM in .venv-vllm, transformers in
.venv.
"""

import itertools
from functools import partial
from typing import Any

from benchmarks.common import best_of, child, options, ran_as_child, show, vllm_python
from benchmarks.engines import loaded

MODULE = "benchmarks.requests"
REQUESTS = 16


def main() -> None:
    if ran_as_child({"rates": rates}):
        return
    given = options(__doc__)
    size = ("4", "1") if given.quick else ("64", "3")
    transformers = child(MODULE, "--child", "rates", "transformers", given.model, *size)
    vllm = child(MODULE, "--child", "rates", "vllm", given.model, *size, python=vllm_python())
    figures = {
        "together_over_generate_transformers": transformers["together"],
        "together_over_generate_vllm": vllm["together"],
        "pairs_over_generate_transformers": transformers["pairs"],
        "pairs_over_generate_vllm": vllm["pairs"],
        "generate_seconds_transformers": transformers["seconds"],
        "generate_seconds_vllm": vllm["seconds"],
    }
    show(figures, given.json)


def rates(name: str, model: str, tokens: str, rounds: str) -> dict[str, float]:
    """Return the ratios of one engine, and its seconds."""
    from estune.tasks import get_task

    engine, _ = loaded(name, model)
    prompts = [row["prompt"] for row in get_task("countdown").train(REQUESTS)]
    budget = int(tokens)
    generated, together, pairs = best_of(
        int(rounds),
        partial(engine.generate, prompts, max_completion_length=budget),
        partial(arrive, engine, prompts, budget, REQUESTS),
        partial(arrive, engine, prompts, budget, 2),
    )
    return {
        "together": generated / together,
        "pairs": generated / pairs,
        "seconds": generated,
    }


def arrive(engine: Any, prompts: list[Any], budget: int, count: int) -> None:
    """Submit `count` prompts before each step, until all are completed."""
    from estune.common.types import Request

    waiting = iter(prompts)
    ended = 0
    while ended < len(prompts):
        for prompt in itertools.islice(waiting, count):
            engine.submit(Request(prompt, budget))
        ended += len(engine.step())


if __name__ == "__main__":
    main()
