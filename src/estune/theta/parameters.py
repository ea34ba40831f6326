"""Which tensors of a checkpoint are parameters, and the name of each inside the model.

Noise is addressed by the names in the files. transformers may rename a tensor on loading, or drop a
tied one, so the model is built on torch's meta device, which takes no memory, to find out. A model
whose layout in memory differs from its files by more than names is refused.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from estune.common.guard import guarded
from estune.errors import ConfigError, ModelError
from estune.theta.architectures import auto_class, beside_language, check_architecture, sees
from estune.theta.checkpoint import Checkpoint


@dataclass(frozen=True)
class Layout:
    """The parameters of a checkpoint.

    in_model: name in the files → name inside the transformers model, each parameter once.
    aliases: other names of a tied parameter in the files → its name in `in_model`.
    vision: of a model that sees, the parameters outside its language model.
    sees: whether the model takes images.
    """

    in_model: dict[str, str]
    aliases: dict[str, str]
    vision: frozenset[str] = frozenset()
    sees: bool = False

    def targets(self, patterns: list[str] | None) -> list[str]:
        """Return the names that a pattern matches; without patterns, all but `vision`."""
        if patterns is None:
            return [name for name in self.in_model if name not in self.vision]
        return [name for name in self.in_model if matches(patterns, name)]


def layout(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Layout:
    """Return the parameters of `checkpoint`.

    Raises:
        ModelError: the model generates no text, is quantised, unknown to transformers, incomplete, or
            laid out differently in memory.
    """
    model = _checkpoint_model(checkpoint, trust_remote_code)
    with guarded(
        ModelError, f"{checkpoint.folder}: transformers does not say how this model is laid out"
    ):
        inside = dict(model.named_parameters(remove_duplicate=False))
        rename = _renaming(model)
        embedding = _embedding(model)
    renamed = {name: rename(name) for name in checkpoint.tensors}
    found = {name: inside_name for name, inside_name in renamed.items() if inside_name in inside}
    _check_shapes(checkpoint, found, inside)
    in_model, aliases = _once_each(checkpoint, found, inside, embedding)
    covered = {id(inside[name]) for name in in_model.values()}
    if missing := [name for name, parameter in inside.items() if id(parameter) not in covered]:
        raise ModelError(
            f"{checkpoint.folder}: its files lack {len(missing)} parameters, such as {missing[0]}"
        )
    seeing = sees(model.config)
    beside = beside_language(model) if seeing else set()
    vision = {name for name, inside_name in in_model.items() if id(inside[inside_name]) in beside}
    return Layout(in_model, aliases, frozenset(vision), seeing)


def matches(patterns: list[str], name: str) -> bool:
    """Return whether some pattern is found in the name.

    Raises:
        ConfigError: a pattern is not a regular expression.
    """
    for pattern in patterns:
        try:
            if re.search(pattern, name):
                return True
        except re.error as error:
            raise ConfigError(
                f"target_parameters: {pattern!r} is not a regular expression ({error})"
            ) from None
    return False


def empty_model(config: Any, *, trust_remote_code: bool) -> Any:
    """Return the model of a transformers config on the meta device: shapes without memory."""
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model


def _checkpoint_model(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    folder = checkpoint.folder
    try:
        with guarded(ModelError, f"{folder}: transformers cannot build this model"):
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            check_architecture(config, folder)
            return empty_model(config, trust_remote_code=trust_remote_code)
    except ModelError as error:
        if "trust_remote_code" in str(error.__cause__) and not trust_remote_code:
            why = "has its own code; read it, and add --trust_remote_code true if it may run"
            raise ModelError(f"{folder}: {why}") from error.__cause__
        raise


def _renaming(model: Any) -> Callable[[str], str]:
    """Return transformers' map from names in files to names in the model.

    It raises ModelError for a tensor that transformers would convert.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model) or []
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    state = model.state_dict()

    def rename(name: str) -> str:
        if name in state:
            return name
        inside, converter = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state
        )
        if converter is not None:
            raise ModelError(
                f"{name}: transformers fuses it with others in memory, which cannot be tuned yet"
            )
        return str(inside)

    return rename


def _check_shapes(checkpoint: Checkpoint, found: dict[str, str], inside: dict[str, Any]) -> None:
    for name, inside_name in found.items():
        stored, wanted = checkpoint.tensors[name], tuple(inside[inside_name].shape)
        if stored.shape != wanted:
            raise ModelError(
                f"{checkpoint.folder}: {name} has shape {stored.shape}, its config says {wanted}"
            )
        if stored.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ModelError(
                f"{checkpoint.folder}: {name} is stored as {stored.dtype}, which cannot be tuned"
            )


def _once_each(
    checkpoint: Checkpoint, found: dict[str, str], inside: dict[str, Any], embedding: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Keep one name per parameter: for tied tensors, the input embedding's.

    Raises:
        ModelError: tied tensors have different values.
    """
    groups: dict[int, list[str]] = {}
    for name, inside_name in found.items():
        groups.setdefault(id(inside[inside_name]), []).append(name)
    in_model, aliases = {}, {}
    for names in groups.values():
        kept = next((name for name in names if found[name] == embedding), names[0])
        in_model[kept] = found[kept]
        for other in names:
            if other == kept:
                continue
            if not torch.equal(checkpoint.read(kept).float(), checkpoint.read(other).float()):
                raise ModelError(
                    f"{checkpoint.folder}: {kept} and {other} are tied in the config but differ "
                    "in the files"
                )
            aliases[other] = kept
    return in_model, aliases


def _embedding(model: Any) -> str:
    """Return the name, inside the model, of the input embedding's weight."""
    module = model.get_input_embeddings()
    return next(f"{name}.weight" for name, other in model.named_modules() if other is module)
