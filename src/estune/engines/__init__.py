"""Engines run the model; `build` makes the one that a config names."""

from estune.checkpoint import Checkpoint
from estune.config import ESConfig
from estune.engines.base import Engine
from estune.parameters import Layout


def build(checkpoint: Checkpoint, layout: Layout, config: ESConfig, tokenizer: object = None) -> Engine:
    """The engine for `checkpoint`, holding the base model's weights. Raises ModelError when it cannot be loaded."""
    if config.engine == "fake":
        from estune.engines.fake import FakeEngine

        engine = FakeEngine({name: checkpoint.tensors[name].shape for name in layout.in_model})
        engine.load((name, slice(None), checkpoint.read(name)) for name in layout.in_model)
        return engine
    from estune.engines.transformers import TransformersEngine

    return TransformersEngine(checkpoint.folder, layout.in_model, config, tokenizer)
