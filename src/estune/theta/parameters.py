"""Which tensors of a checkpoint are parameters, and the name of each inside the model.

Noise is addressed by the names in the files. transformers may rename a tensor on loading, or drop a
tied one, so the model is built on torch's meta device, which takes no memory, to find out. Where
it also fuses or splits tensors, fused.py finds out which elements go where.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from estune.common.guard import guarded
from estune.errors import ModelError
from estune.theta.architectures import auto_class, check_architecture, outside_language, sees
from estune.theta.checkpoint import Checkpoint
from estune.theta.fused import Fragment, Loading
from estune.theta.presets import chosen, routers


@dataclass(frozen=True)
class Layout:
    """The parameters of a checkpoint.

    in_model: name in the files → name inside the transformers model, each parameter once. Tensors
        that are fused there share a name.
    aliases: other names of a tied parameter in the files → its name in `in_model`.
    fused: name in the files → where its elements are, if the model has no parameter of its own for
        it.
    vision: of a model that sees, the parameters outside its language model.
    sees: whether the model takes images.
    routers: of a mixture of experts, the parameters that decide which experts serve a token.
    """

    in_model: dict[str, str]
    aliases: dict[str, str]
    fused: dict[str, tuple[Fragment, ...]] = field(default_factory=dict)
    vision: frozenset[str] = frozenset()
    sees: bool = False
    routers: frozenset[str] = frozenset()

    def inside(self, name: str) -> set[str]:
        """Return the parameters inside the model that hold elements of `name`."""
        return {each.inside for each in self.fused.get(name, ())} or {self.in_model[name]}

    def targets(self, patterns: list[str] | None) -> list[str]:
        """Return the names that `target_parameters` means; if it is None, all but `vision`."""
        usual = [name for name in self.in_model if name not in self.vision]
        if patterns is None:
            return usual
        return chosen(patterns, [*self.in_model], usual, self.routers)


def layout(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Layout:
    """Return the parameters of `checkpoint`.

    Raises:
        ModelError: the model generates no text, is quantised, unknown to transformers, incomplete,
            or laid out differently in memory.
    """
    model = _checkpoint_model(checkpoint, trust_remote_code)
    with guarded(
        ModelError, f"{checkpoint.folder}: transformers does not say how this model is laid out"
    ):
        inside = dict(model.named_parameters(remove_duplicate=False))
        loading = Loading(model)
        renamed, groups = loading.sort(
            {name: stored.shape for name, stored in checkpoint.tensors.items()}
        )
        embedding = _embedding(model)
        fused = _of_parameters(loading.places(groups), inside)
        routing = routers(model)
    found = {name: renamed[name] for name in checkpoint.tensors if renamed.get(name) in inside}
    _check_shapes(checkpoint, found, inside)
    _check_dtypes(checkpoint, [*found, *fused])
    in_model, aliases = _once_each(checkpoint, found, inside, embedding)
    in_model |= {name: fragments[0].inside for name, fragments in fused.items()}
    covered = {id(inside[name]) for name in in_model.values()}
    covered |= {
        id(inside[fragment.inside]) for fragments in fused.values() for fragment in fragments
    }
    if missing := [name for name, parameter in inside.items() if id(parameter) not in covered]:
        raise ModelError(
            f"{checkpoint.folder}: its files lack {len(missing)} parameters, such as {missing[0]}"
        )
    in_model = {name: in_model[name] for name in checkpoint.tensors if name in in_model}
    seeing = sees(model.config)
    outside = outside_language(model) if seeing else set()
    vision = {name for name, inside_name in in_model.items() if id(inside[inside_name]) in outside}
    routed = frozenset(name for name, inside_name in in_model.items() if inside_name in routing)
    return Layout(in_model, aliases, fused, frozenset(vision), seeing, routed)


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


def _of_parameters(
    places: dict[str, tuple[Fragment, ...]], inside: dict[str, Any]
) -> dict[str, tuple[Fragment, ...]]:
    """Return the tensors that are parameters inside the model, not buffers.

    Raises:
        ModelError: one is both.
    """
    fused = {}
    for name, fragments in places.items():
        parameters = [fragment.inside in inside for fragment in fragments]
        if any(parameters) and not all(parameters):
            raise ModelError(f"{name}: transformers keeps a part of it as a buffer")
        if all(parameters):
            fused[name] = fragments
    return fused


def _check_shapes(checkpoint: Checkpoint, found: dict[str, str], inside: dict[str, Any]) -> None:
    for name, inside_name in found.items():
        stored, wanted = checkpoint.tensors[name], tuple(inside[inside_name].shape)
        if stored.shape != wanted:
            raise ModelError(
                f"{checkpoint.folder}: {name} has shape {stored.shape}, its config says {wanted}"
            )


def _check_dtypes(checkpoint: Checkpoint, names: list[str]) -> None:
    for name in names:
        dtype = checkpoint.tensors[name].dtype
        if dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ModelError(
                f"{checkpoint.folder}: {name} is stored as {dtype}, which cannot be tuned"
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
