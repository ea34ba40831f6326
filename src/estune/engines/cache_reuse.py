"""What a batch need not compute, if the model's cache of keys and values allows it.

transformers' `generate` computes the common prefix of the prompts for each sequence, and goes on
computing sequences that have ended until all have. If a cache is kept between several calls, the
prefix is computed only once, and ended sequences leave the batch between calls.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Names of the cache among forward's arguments: since transformers 5.24, and before.
_CACHE_ARGUMENTS = ("cache", "past_key_values")


@dataclass(frozen=True)
class Reuse:
    """What a batch can reuse with one model, or why it cannot.

    Attributes:
        argument: the name of the cache argument of the model's `forward`.
        keeps_ended: why ended sequences must stay in the batch; empty if they leave it.
        repeats_prefix: why the common prefix is computed for each prompt; empty if only once.
    """

    argument: str
    keeps_ended: str = ""
    repeats_prefix: str = ""

    @classmethod
    def of(cls, model: Any) -> "Reuse":
        """Return what `model`, a causal LM of transformers, allows."""
        accepted = inspect.signature(model.forward).parameters
        argument = next((name for name in _CACHE_ARGUMENTS if name in accepted), "")
        if not argument:
            why = f"its forward has no argument {' or '.join(_CACHE_ARGUMENTS)}"
        elif odd := _other_state(new_cache(model)):
            why = f"its cache keeps {odd}"
        elif _keeps_positions(model):
            why = "it keeps the positions of one call for the next"
        else:
            return cls(argument, "", _why_repeated(model))
        return cls(argument, why, why)

    def none(self, why: str) -> "Reuse":
        """Return what a batch can reuse if `why` forbids all of it."""
        return Reuse(self.argument, why, why)

    def describe(self) -> str:
        """Return one line for the log."""
        if self.keeps_ended:
            return (
                "completions that have ended stay in the batch and the prompts' common prefix "
                f"is computed once per prompt: {self.keeps_ended}"
            )
        if self.repeats_prefix:
            return f"the prompts' common prefix is computed once per prompt: {self.repeats_prefix}"
        return (
            "the prompts' common prefix is computed once, "
            "and completions that have ended leave the batch"
        )

    @property
    def saves_all(self) -> bool:
        """Whether nothing is computed twice."""
        return not (self.keeps_ended or self.repeats_prefix)


def new_cache(model: Any) -> Any:
    """Return an empty cache like the one that `generate` makes."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _other_state(cache: Any) -> str:
    """Return what `cache` holds besides keys and values; empty if nothing.

    A sequence can be removed from keys and values, but not from other states.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if not cache.layers:
        return "layers that are known only after the first token"
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return _kinds(layer for layer in cache.layers if type(layer) not in plain)


def _keeps_positions(model: Any) -> bool:
    """Whether the model counts positions itself, as those that see in two dimensions do."""
    from transformers import GenerationMixin

    name = "_prepare_position_ids_for_generation"
    usual = getattr(GenerationMixin, name, None)
    return getattr(type(model), name, usual) is not usual


def _why_repeated(model: Any) -> str:
    """Return why a prefix's keys and values may depend on what follows it; empty if they do not."""
    from transformers.cache_utils import DynamicLayer

    if not type(model).__module__.startswith("transformers."):
        return "its code comes with the checkpoint, so how it counts positions is not known"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward has no argument position_ids"
    partial = _kinds(layer for layer in new_cache(model).layers if type(layer) is not DynamicLayer)
    if partial:
        return f"its cache forgets tokens ({partial})"
    rope = str(getattr(model.config.get_text_config(decoder=True), "rope_parameters", None))
    if "dynamic" in rope or "longrope" in rope:
        return "its positions depend on the whole length (dynamic RoPE)"
    return ""


def _kinds(layers: Iterable[Any]) -> str:
    return ", ".join(sorted({type(layer).__name__ for layer in layers}))
