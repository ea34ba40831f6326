"""What vLLM gains over transformers, and what a whole step on it costs beside its generation; on the real model.

    python -m benchmarks.engines [--json]

    vllm_over_transformers    tokens/s of vLLM ÷ tokens/s of transformers: the same 50 prompts, 128 new tokens; at least 2.5
    step_over_generation      wall time of a step on vLLM (N = 8, 50 prompts, 128 new tokens) ÷ the sum of `generate` in it;
                              at most 1.05

Both on a CPU in bfloat16, vLLM with enforce_eager. Of three steps the first also compiles and reads a member back, and the
last saves, so the one between counts.
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import checkpoint, options, show
from estune.config import ESConfig
from estune.member import Prompt

MEMBERS, PROMPTS, TOKENS, STEPS = 8, 50, 128, 3


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        what, model = sys.argv[2:]
        print(json.dumps(_step(model) if what == "step" else _tokens_per_second(what, model)))
        return
    asked = options(__doc__)
    step, vllm, transformers = (_child(what, asked.model) for what in ("step", "vllm", "transformers"))
    ratio = vllm["tokens_per_second"] / transformers["tokens_per_second"]
    speeds = {"vllm_tokens_per_second": vllm["tokens_per_second"], "transformers_tokens_per_second": transformers["tokens_per_second"]}
    show({"vllm_over_transformers": ratio} | speeds | step, asked.json)


def _child(what: str, model: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.engines", "--child", what, model]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _prompts() -> list[Prompt]:
    from estune.tasks import get_task

    return [row["prompt"] for row in get_task("countdown").train(PROMPTS)]


def _tokens_per_second(engine: str, model: str) -> dict[str, float]:
    """Of one batch, after a short one that isn't counted."""
    from estune import engines
    from estune.parameters import layout

    base = checkpoint(model)
    with contextlib.redirect_stdout(io.StringIO()):
        built = engines.build(base, layout(base), ESConfig(engine=engine, vllm_enforce_eager=True))  # type: ignore[arg-type]
        prompts = _prompts()
        built.generate(prompts, max_completion_length=4)
        started = time.perf_counter()
        done = built.generate(prompts, max_completion_length=TOKENS)
    return {"tokens_per_second": sum(len(completion.ids) for completion in done) / (time.perf_counter() - started)}


def _step(model: str) -> dict[str, float]:
    from estune import ESTrainer

    def length(completions: list[str], **columns: object) -> list[float]:
        return [float(len(text)) for text in completions]

    rows = [{"prompt": prompt} for prompt in _prompts()]
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
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
        ESTrainer(model, length, config, rows).train()
        step = json.loads((Path(output) / "metrics.jsonl").read_text().splitlines()[1])
    seconds = {name: step[f"es/{name}"] for name in ("generate_seconds", "load_seconds", "update_seconds")}
    return {"step_over_generation": step["step_time"] / step["es/generate_seconds"]} | seconds


if __name__ == "__main__":
    main()
