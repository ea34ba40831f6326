"""Measure what a mixture of experts costs beyond a dense model: loading a member, and the proof.

    python -m benchmarks.experts [--json]

    member_over_copy            loading a member into a mixture of experts ÷ copying θ (fp32) once;
                                at most 2.5
    transposed_over_copy        the same with experts that are transposed in memory
    proof_over_generation       comparing the fused parameters with the files ÷ generating for one
                                member (eight prompts, 32 new tokens); below 1

The model is random: one layer of Qwen3-MoE with 16 experts of the size that Qwen3-30B-A3B has.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import best_of, show
from benchmarks.common import options as read_options
from benchmarks.kernels import MEMBER, copy_all
from estune.config import ESConfig
from estune.engines import build
from estune.engines.transformers import TransformersEngine
from estune.theta.checkpoint import Checkpoint, open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

SIZES = {  # the experts' and the width are those of Qwen3-30B-A3B
    "vocab_size": 4096,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
SMALL = {"hidden_size": 64, "moe_intermediate_size": 32}
PROMPTS = [[1 + (7 * row + place) % 4000 for place in range(64)] for row in range(8)]


def main() -> None:
    given = read_options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_model(Path(folder), SIZES | (SMALL if given.quick else {}))
        plan = layout(checkpoint)
        theta = Theta.load(checkpoint, plan.in_model)
        config = ESConfig(output_dir=folder, dtype="bfloat16", device="cpu")
        engine = build(checkpoint, plan, config)
        assert isinstance(engine, TransformersEngine)
        rounds, tokens = (1, 4) if given.quick else (5, 32)
        figures = proving(checkpoint, engine, tokens) | loading(theta, engine, rounds)
    show(figures, given.json)


def random_model(folder: Path, sizes: dict[str, Any]) -> Checkpoint:
    """Write a random model in bf16 with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).to(torch.bfloat16)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(4096)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0").save_pretrained(folder)
    return open_checkpoint(folder)


def loading(theta: Theta, engine: TransformersEngine, rounds: int) -> dict[str, float]:
    copy = {name: tensor.clone() for name, tensor in theta.tensors.items()}
    transposed = {name: swapped(tensor) for name, tensor in theta.tensors.items()}
    copied, loaded, strided = best_of(
        rounds,
        partial(copy_all, theta.tensors, copy),
        partial(engine.load, theta, MEMBER),
        lambda: [None for _ in theta.perturbed(MEMBER, transposed.__getitem__)],
    )
    return {
        "member_over_copy": loaded / copied,
        "transposed_over_copy": strided / copied,
        "copy_seconds": copied,
        "member_seconds": loaded,
    }


def swapped(tensor: torch.Tensor) -> torch.Tensor:
    """Return a bf16 tensor of the same shape whose two axes are swapped in memory."""
    return torch.empty(tensor.shape[::-1], dtype=torch.bfloat16).permute(*range(tensor.dim())[::-1])


def proving(checkpoint: Checkpoint, engine: TransformersEngine, tokens: int) -> dict[str, float]:
    generated, proven = best_of(
        2,
        partial(engine.generate, PROMPTS, max_completion_length=tokens),
        partial(engine.parameters.check_files, checkpoint),
    )
    return {
        "proof_over_generation": proven / generated,
        "generation_seconds": generated,
        "proof_seconds": proven,
    }


if __name__ == "__main__":
    main()
