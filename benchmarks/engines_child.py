"""A measured process of `benchmarks.engines`: a run of the trainer on vLLM, or one engine answering as members."""

import contextlib
import io
import json
import sys
import tempfile
import time
from typing import Any

from benchmarks.common import characters, checkpoint, steps_between
from estune.config import ESConfig
from estune.tasks import get_task

VLLM: dict[str, Any] = {
    "engine": "vllm",
    "vllm_enforce_eager": True,
    "engine_kwargs": {"kv_cache_memory_bytes": 1 << 30},
}


def run(model: str, members: int, prompts: int, tokens: int) -> dict[str, Any]:
    """The second of three steps of the trainer as a user runs it."""
    size = {"population_size": members, "max_steps": 3, "max_completion_length": tokens}
    (step,) = steps_between(model, get_task("countdown").train(prompts), characters, **size, **VLLM)
    return step


def answering(engine_name: str, model: str, prompts: int, tokens: int) -> dict[str, Any]:
    """The faster of two members, each loaded first, after one that warms up on a few prompts."""
    from estune import engines
    from estune.common.types import Member, Unperturbed
    from estune.theta.parameters import layout
    from estune.theta.theta import Theta

    base, settings = checkpoint(model), VLLM if engine_name == "vllm" else {}
    plan = layout(base)
    theta = Theta.load(base, plan.in_model, share=True)
    with tempfile.TemporaryDirectory() as output:
        engine = engines.build(base, plan, ESConfig(output_dir=output, **settings))
    asked = [row["prompt"] for row in get_task("countdown").train(prompts)]
    engine.check(theta, Unperturbed(0))  # learns in what dtype to write members
    engine.generate(asked[:8], max_completion_length=8)
    rates, lengths = [], []
    for sign in (1, -1):
        engine.load(theta, Member(1, sign, 1e-4, "iid", 0))
        started = time.perf_counter()
        answers = engine.generate(asked, max_completion_length=tokens)
        seconds = time.perf_counter() - started
        lengths.append(sum(len(answer.ids) for answer in answers) / len(answers))
        rates.append(lengths[-1] * len(answers) / seconds)
    return {"tokens_per_second": max(rates), "tokens_per_completion": sum(lengths) / len(lengths)}


def main() -> None:
    what, model, *size = sys.argv[1:]
    members, prompts, tokens = map(int, size)
    with contextlib.redirect_stdout(io.StringIO()):
        figures = (
            run(model, members, prompts, tokens)
            if what == "run"
            else answering(what, model, prompts, tokens)
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
