"""A measured process of `benchmarks.engines`: a run of the trainer on vLLM, or one engine answering as members."""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import checkpoint
from estune.config import ESConfig
from estune.tasks import get_task

MEMBERS, PROMPTS, TOKENS, STEPS = 8, 50, 128, 3


def run(model: str, output: str) -> dict[str, float]:
    """Three steps of the trainer as a user runs it; the second counts."""
    from estune import ESTrainer

    task = get_task("countdown")
    config = ESConfig(
        output_dir=output,
        engine="vllm",
        vllm_enforce_eager=True,
        population_size=MEMBERS,
        max_steps=STEPS,
        max_completion_length=TOKENS,
        sigma=1e-4,
        disable_tqdm=True,
    )
    ESTrainer(model, task.reward_funcs, config, task.train(PROMPTS)).train()
    step = json.loads((Path(output) / "metrics.jsonl").read_text().splitlines()[1])
    return {"step_seconds": step["step_time"]} | {f"{part}_seconds": step[f"es/{part}_seconds"] for part in ("generate", "load", "update")}


def answering(engine_name: str, model: str, output: str) -> dict[str, float]:
    """The faster of two members, each loaded first, after one that warms up on a few prompts."""
    from estune import engines
    from estune.center import Center
    from estune.member import Member
    from estune.parameters import layout

    base = checkpoint(model)
    plan = layout(base)
    center = Center.load(base, plan.in_model, share=True)
    engine = engines.build(base, plan, ESConfig(output_dir=output, engine=engine_name, vllm_enforce_eager=True))
    prompts = [row["prompt"] for row in get_task("countdown").train(PROMPTS)]
    engine.check(center, Member(0, 1, 0.0, "iid", 0))  # learns in what dtype to write members
    engine.generate(prompts[:8], max_completion_length=8)
    rates, lengths = [], []
    for sign in (1, -1):
        engine.load(center, Member(1, sign, 1e-4, "iid", 0))
        started = time.perf_counter()
        tokens = sum(len(answer.ids) for answer in engine.generate(prompts, max_completion_length=TOKENS))
        rates.append(tokens / (time.perf_counter() - started))
        lengths.append(tokens / PROMPTS)
    return {"tokens_per_second": max(rates), "tokens_per_completion": sum(lengths) / len(lengths)}


def main() -> None:
    what, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        figures = run(model, output) if what == "run" else answering(what, model, output)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
