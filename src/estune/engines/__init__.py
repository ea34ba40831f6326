"""Engines run the model; `build` makes the one that a config names."""

from typing import Any

from estune.config import ESConfig
from estune.engines.base import Engine
from estune.theta.checkpoint import Checkpoint
from estune.theta.parameters import Layout


def build(
    checkpoint: Checkpoint, layout: Layout, config: ESConfig, tokenizer: Any = None
) -> Engine:
    """The engine for `checkpoint`, holding the base model's weights. Raises ModelError when it cannot be loaded."""
    if config.engine == "fake":
        from estune.engines.fake import FakeEngine

        return FakeEngine(checkpoint, layout.in_model)
    if config.engine == "vllm":
        from estune.engines.vllm import VLLMEngine

        return VLLMEngine(checkpoint, layout, config, tokenizer)
    from estune.engines.transformers import TransformersEngine

    return TransformersEngine(checkpoint.folder, layout.in_model, config, tokenizer)
