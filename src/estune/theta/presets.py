"""The words that `target_parameters` knows for parts of a mixture of experts.

    routers           what decides which experts serve a token
    without_routers   everything else
    shared_experts    the experts that serve every token, with their gates

Any other entry is a regular expression on the names in the files.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from estune.errors import ConfigError

ROUTERS, WITHOUT_ROUTERS, SHARED = "routers", "without_routers", "shared_experts"
_SHARED = re.compile(r"(^|\.)shared_(experts?|mlp)(_gate)?\.")


def routers(model: Any) -> set[str]:
    """Return the parameters inside a transformers model that are in its routers.

    transformers declares which modules' output are the router's logits.
    """
    from transformers import PreTrainedModel

    declared = [
        _classes(module) for module in model.modules() if isinstance(module, PreTrainedModel)
    ]
    kinds: Any = tuple({kind for kinds in declared for kind in kinds})
    return {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        for own, _ in module.named_parameters()
    }


def chosen(
    patterns: Sequence[str], names: Sequence[str], usual: Sequence[str], in_routers: Iterable[str]
) -> list[str]:
    """Return the names that the words and regular expressions `patterns` mean.

    Args:
        usual: the names that are tuned if nothing is said.
        in_routers: the names of the routers' parameters.

    Raises:
        ConfigError: a pattern is not a regular expression, or a word means nothing here.
    """
    routed = {*in_routers}
    words = {
        ROUTERS: routed,
        WITHOUT_ROUTERS: {*usual} - routed if routed else set(),
        SHARED: {name for name in names if _SHARED.search(name)},
    }
    meant: set[str] = set()
    for pattern in patterns:
        found = words[pattern] if pattern in words else _matching(pattern, names)
        if pattern in words and not found:
            missing = pattern.removeprefix("without_").replace("_", " ")
            raise ConfigError(f"target_parameters: this model has no {missing}")
        meant |= found
    return [name for name in names if name in meant]


def _matching(pattern: str, names: Iterable[str]) -> set[str]:
    try:
        return {name for name in names if re.search(pattern, name)}
    except re.error as error:
        raise ConfigError(
            f"target_parameters: {pattern!r} is not a regular expression ({error})"
        ) from None


def _classes(module: Any) -> set[type]:
    """Return the classes of routers that a model's class declares."""
    recorded = getattr(module, "_can_record_outputs", None) or {}
    recorders = recorded.get("router_logits") or []
    recorders = recorders if isinstance(recorders, (list, tuple)) else [recorders]
    classes = (getattr(recorder, "target_class", recorder) for recorder in recorders)
    return {each for each in classes if isinstance(each, type)}
