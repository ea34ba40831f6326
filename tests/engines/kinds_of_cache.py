"""Tiny models that differ in what they keep of the tokens before, and prompts for them."""

import torch
import transformers
from helpers import make_tokenizer

BEGINNING = (
    "the capital of the red dog was in a blue sky and what is the color of the cat"  # 18 tokens
)
ENDS = [
    "",
    "x",
    "one two three",
    "who was a green dog",
    "y z",
    "how",
    "where is the sky of the cat",
    "when",
]
PROMPTS = [f"{BEGINNING} {end}" for end in ENDS]
TOKENS = {
    "vocab_size": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "initializer_range": 0.3,
}
SIZES = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "a sliding window": transformers.MistralConfig(**GROUPED, sliding_window=6),
    "both kinds of layers": transformers.Gemma2Config(
        **GROUPED, sliding_window=6, query_pre_attn_scalar=8
    ),
    "positions by length": transformers.Phi3Config(
        **GROUPED, max_position_embeddings=64, original_max_position_embeddings=20,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4,
            "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
        },
    ),
    "learned positions": transformers.OPTConfig(
        **SIZES, ffn_dim=48, word_embed_proj_dim=32, init_std=0.3
    ),
    "no positions": transformers.BloomConfig(**TOKENS, hidden_size=32, n_layer=2, n_head=4),
    "a state": transformers.MambaConfig(**TOKENS, hidden_size=32, num_hidden_layers=2),
    "a state and a cache": transformers.Qwen3NextConfig(
        **GROUPED, linear_num_value_heads=2, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2,
        num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    ),
}  # fmt: skip


def saved(kind: str, folder):
    torch.manual_seed(2)
    transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
