"""Engines run the model; `build` makes the one that a config names."""

from typing import Any

from estune.config import ESConfig
from estune.engines.base import Engine
from estune.engines.device import engine_device, engine_dtype
from estune.theta.checkpoint import Checkpoint
from estune.theta.parameters import Layout


def build(
    checkpoint: Checkpoint, layout: Layout, config: ESConfig, tokenizer: Any = None
) -> Engine:
    """Return the engine for `checkpoint`, holding the base model's weights.

    Raises:
        ModelError: the model cannot be loaded.
    """
    if config.engine == "fake":
        from estune.engines.fake import FakeEngine

        return FakeEngine(checkpoint, layout.in_model)
    device = engine_device(config)
    dtype = engine_dtype(config)
    if config.engine == "vllm":
        from estune.engines.vllm import VLLMEngine

        return VLLMEngine(checkpoint, layout, config, device, dtype, tokenizer)
    from estune.engines.transformers import open_engine

    return open_engine(checkpoint.folder, layout, config, device, dtype, tokenizer)
