"""Find the base model of a run; a transformers object is first written to `output_dir/base`."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from estune.common.durable import disk_errors, replaced_folder, sync_tree
from estune.common.guard import guarded
from estune.config import ESConfig, RunConfig
from estune.errors import ModelError
from estune.theta.checkpoint import open_checkpoint, resolve
from estune.theta.companions import INDEX, copy_companions

logger = logging.getLogger(__name__)


def base_model(source: Any, config: ESConfig, tokenizer: Any) -> tuple[str, Path]:
    """Return the model's name for the journal, and its folder.

    Raises:
        ModelError: there is no such model, or it is of a kind that cannot be tuned.
    """
    trusted = config.trust_remote_code
    if isinstance(source, (str, Path)):
        revision = config.model_revision if isinstance(config, RunConfig) else None
        return str(source), resolve(str(source), revision, trust_remote_code=trusted)
    if not hasattr(source, "save_pretrained"):
        raise ModelError(
            f"model: {source!r} is not a hub id, a folder, a .gguf file or a transformers model"
        )
    if hasattr(source, "peft_config"):
        raise ModelError(
            "model: it has an adapter, such as LoRA's, but estune tunes whole models; "
            "give model.merge_and_unload()"
        )
    folder = Path(config.output_dir) / "base"
    if folder.is_dir():  # an earlier run may depend on this base model, so it is never overwritten
        _check_same(source, folder)
    else:
        _write_base(source, tokenizer, folder, trusted)
    return str(folder), folder


def _write_base(source: Any, tokenizer: Any, folder: Path, trusted: bool) -> None:
    # A tokenizer with its own code may read files that it does not save. So the files that it came
    # from are copied too, unless the user gave another tokenizer.
    origin = None if tokenizer else _origin(source, trusted)
    tokenizer = tokenizer or _tokenizer_of(origin, trusted)
    with replaced_folder(folder) as scratch:
        _save(source, tokenizer, scratch)
        if origin:
            copy_companions(origin, scratch, skip=INDEX)
        sync_tree(scratch)


def _save(source: Any, tokenizer: Any, folder: Path) -> None:
    """Write a transformers model to `folder`, and its tokenizer unless that is None."""
    what = f"model: transformers cannot write it to {folder}"
    with guarded(ModelError, what), disk_errors(folder):
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        with _valid_generation_config(source):
            source.save_pretrained(folder)


@contextmanager
def _valid_generation_config(source: Any) -> Iterator[None]:
    """Give `source` a generation config that transformers can save, for the time of the block.

    If its own is not valid, the special tokens are taken from it. Greedy completions need no more.
    """
    own = getattr(source, "generation_config", None)
    if own is None or _is_valid(own):
        yield
        return
    logger.warning(
        "the model's generation config is not valid, so only its special tokens are saved; "
        "greedy completions need nothing else of it"
    )
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    source.generation_config = type(own)(**{name: getattr(own, name, None) for name in names})
    try:
        yield
    finally:
        source.generation_config = own


def _is_valid(generation_config: Any) -> bool:
    try:
        generation_config.validate(strict=True)
    except Exception:  # transformers raises several kinds
        return False
    return True


def _check_same(source: Any, folder: Path) -> None:
    """Raise ModelError if the weights of `source` differ from those in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        _save(source, None, Path(scratch))
        new = open_checkpoint(Path(scratch))
        old = open_checkpoint(folder)
        same = new.tensors == old.tensors and all(
            torch.equal(new.read(name), old.read(name)) for name in new.tensors
        )
    if not same:
        raise ModelError(
            f"model: its weights differ from those in {folder}, with which the run in "
            f"{folder.parent} began; give the same model, or choose another output_dir"
        )


def _origin(source: Any, trusted: bool) -> Path:
    """Return the folder that the model was loaded from, without downloading weights."""
    name = getattr(source, "name_or_path", "")
    if not name:
        raise ModelError(
            "processing_class: the model was not loaded from a folder or the hub; "
            "give the tokenizer that belongs to it"
        )
    return resolve(name, trust_remote_code=trusted, weights=False)


def _tokenizer_of(folder: Path | None, trusted: bool) -> Any:
    from transformers import AutoTokenizer

    what = f"processing_class: no tokenizer could be loaded from {folder}"
    with guarded(ModelError, what, "give the tokenizer"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
