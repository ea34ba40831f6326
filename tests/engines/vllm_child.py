"""A vLLM engine in its own process, which prints completions. Run by test_vllm_runs.py.

    python tests/engines/vllm_child.py FOLDER SETTINGS PROMPTS MEMBERS

θ makes one update before the members are loaded, as in `updated`. The arguments and the last line
of the output are JSON.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import psutil

from estune import ESConfig
from estune.common.types import ThetaUpdate, Unperturbed, variant_from_json
from estune.engines.device import engine_dtype
from estune.engines.vllm import VLLMEngine
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
SETTINGS = {
    "dtype": "float32",
    "vllm_enforce_eager": True,
    "engine_kwargs": {"kv_cache_memory_bytes": 1 << 28, "max_num_seqs": 4},
}
TEXT = [
    "what is the color of the sky",
    "cat",
    "how",
    "where is the red dog x y z one two three",
    "who",
    "the " * 60,
    "a capital",
    "blue green red cat",
    "two",
]


def updated(theta: Theta) -> Theta:
    theta.update(ThetaUpdate([5, 6], [0.004, -0.003], noise="iid", version=0))
    return theta


def regions(process: psutil.Process) -> int:
    """How many regions of a process's memory are a shared θ."""
    return sum(
        "estune-theta" in line
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    )


def main() -> None:
    folder, (settings, prompts, members) = Path(sys.argv[1]), map(json.loads, sys.argv[2:])
    checkpoint = open_checkpoint(folder)
    plan = layout(checkpoint)
    theta = Theta.load(checkpoint, plan.in_model, share=True)
    config = ESConfig(**settings)
    engine = VLLMEngine(checkpoint, plan, config, "cpu", engine_dtype(config))
    engine.check(theta, Unperturbed(0))
    updated(theta)
    answers = []
    for fields in members:
        engine.load(theta, variant_from_json(fields))
        answers.append(
            [asdict(answer) for answer in engine.generate(prompts, max_completion_length=12)]
        )
        engine.check(theta, variant_from_json(fields))
    mapping = {
        process.pid: regions(process) for process in psutil.Process().children(recursive=True)
    }
    print(
        json.dumps(
            {
                "answers": answers,
                "digest": theta.digest(),
                "mapping": [pair for pair in mapping.items() if pair[1]],
            }
        )
    )


if __name__ == "__main__":
    main()
