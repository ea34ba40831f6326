"""The model of a run: its checkpoint, its θ and whoever evaluates members of it, each made when first needed.

Everything that can be known from headers alone is checked before a weight is read.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from estune import workers
from estune.common.durable import disk_errors, replaced_folder, sync_tree
from estune.common.guard import guarded
from estune.common.resources import amount, check_memory
from estune.common.types import Prompt
from estune.config import ESConfig, RunConfig
from estune.errors import ConfigError, ModelError
from estune.run.placement import Placement, place
from estune.theta.checkpoint import Checkpoint, open_checkpoint, resolve
from estune.theta.companions import INDEX, companions, copy_companions
from estune.theta.identity import Identity, seal
from estune.theta.parameters import Layout, layout
from estune.theta.theta import Theta
from estune.workers.base import Workers
from estune.workers.model_source import ModelSource
from estune.workers.ranks import ranks_for

logger = logging.getLogger(__name__)


class Model:
    """A base model and what becomes of it.

    Args:
        source: hub id, folder, .gguf file, or a transformers model, which is written to `output_dir/base` first.
        config: which parameters, which engine.
        tokenizer: used and saved instead of the checkpoint's own.
        prompts: dataset's name → all that will be asked, to check that they fit.

    Raises:
        ModelError, ResourceError: the model is not there, cannot be tuned, or does not fit into memory.
        ConfigError: `target_parameters` matches nothing.
    """

    def __init__(
        self, source: Any, config: ESConfig, tokenizer: Any, prompts: Mapping[str, Sequence[Prompt]]
    ) -> None:
        self._ranks = ranks_for(config.workers)
        self.leads = self._ranks is None or self._ranks.leads
        self.name, folder = self._in_turn(partial(_located, source, config, tokenizer))
        self.checkpoint: Checkpoint = open_checkpoint(folder)
        self.layout: Layout = layout(self.checkpoint, trust_remote_code=config.trust_remote_code)
        self.tuned = self.layout.targets(config.target_parameters)
        if not self.tuned:
            raise ConfigError(
                f"target_parameters: no parameter matches; they are named like {next(iter(self.layout.in_model))}"
            )
        self._config = config
        self._tokenizer = tokenizer
        self._prompts = prompts
        self.place: Placement = place(config, self.theta_bytes(), self._gpu_bytes)
        self._check_room()

    @cached_property
    def theta(self) -> Theta:
        """θ, at θ₀ when first asked for."""
        from estune.engines.device import engine_device

        read_elsewhere = self._config.engine == "vllm" or self._config.workers != "local"
        streamed = engine_device(self._config).startswith(
            "cuda"
        )  # from memory in one piece, which can be page-locked
        share = self.place.device == "cpu" and (read_elsewhere or streamed)
        load = partial(
            Theta.load, self.checkpoint, self.tuned, device=self.place.device, share=share
        )
        return self._ranks.theta(load) if self._ranks else load()

    @cached_property
    def workers(self) -> Workers:
        """Who evaluates; must first be asked for while θ is at θ₀, which is compared with what the engines loaded."""
        revision = self._config.model_revision if isinstance(self._config, RunConfig) else None
        source = ModelSource(
            self.name, revision, self.checkpoint, self.layout, self.tuned, self._tokenizer
        )
        return workers.start_workers(self.theta, source, self._config, self._prompts, self._ranks)

    def saved_bytes(self) -> int:
        """Bytes of one checkpoint."""
        folder = self.checkpoint.folder
        weights = sum(
            math.prod(stored.shape) * stored.dtype.itemsize
            for stored in self.checkpoint.tensors.values()
        )
        return weights + sum((folder / path).stat().st_size for path in companions(folder))

    def theta_bytes(self) -> int:
        """Bytes of θ in fp32."""
        return 4 * self._count(self.tuned)

    def describe(self) -> str:
        """One line: what is tuned, where and in how much memory."""
        tuned, total = self._count(self.tuned), self._count(list(self.layout.in_model))
        engines = self._engines_here()
        weights = (
            "the engine's weights" if engines == 1 else f"the weights of each of {engines} engines"
        )
        part = "all" if tuned == total else f"{tuned:,} of"
        return (
            f"{self.name}: {part} {total:,} parameters tuned; θ in fp32 takes {amount(self.theta_bytes())}, "
            f"{weights} {amount(self._engine_bytes())}"
        )

    def write(
        self,
        target: Path,
        identity: Identity | None = None,
        state: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Write θ as a checkpoint with the base's names, dtypes and files, which says which θ it is; `state` may add files to it."""

        def value(name: str) -> torch.Tensor:
            kept = self.layout.aliases.get(name, name)
            theta = self.theta.tensors.get(kept)
            if theta is None:
                return self.checkpoint.read(kept)
            return (
                theta if name == kept else theta.clone()
            )  # safetensors refuses two names for one memory

        def extra(folder: Path) -> None:
            if self._tokenizer is not None:
                with (
                    guarded(ModelError, "processing_class: the tokenizer cannot be saved"),
                    disk_errors(folder),
                ):
                    self._tokenizer.save_pretrained(folder)
            state(folder)
            if identity is not None:
                seal(folder, identity)

        self.checkpoint.write(target, value, extra)

    def _in_turn(self, locate: Callable[[], tuple[str, Path]]) -> tuple[str, Path]:
        """Where processes were launched together the leader looks first, since it may write or fetch the model."""
        if self._ranks and not self.leads:
            self._ranks.hear("located")
        found = locate()
        if self._ranks and self.leads:
            self._ranks.say("located", True)
        return found

    def _count(self, names: Sequence[str]) -> int:
        return sum(math.prod(self.checkpoint.tensors[name].shape) for name in names)

    def _engine_bytes(self) -> int:
        from estune.engines.device import engine_dtype

        size = 4 if self._config.engine == "fake" else engine_dtype(self._config).itemsize
        return size * self._count(list(self.layout.in_model))

    def _gpu_bytes(self) -> int:
        """What transformers will take of a GPU, were it for the longest prompt with two characters a token."""
        from estune.engines.device import engine_dtype
        from estune.run import estimate

        longest = max(
            (len(str(prompt)) for prompts in self._prompts.values() for prompt in prompts),
            default=0,
        )
        work = estimate.Work(
            self._config.generation_batch_size, longest // 2, self._config.max_completion_length
        )
        shape = estimate.shape_of(str(self.checkpoint.folder), self._config)
        return sum(
            estimate.es_on_gpu(shape, self._config, work, engine_dtype(self._config).itemsize)[
                0
            ].values()
        )

    def _check_room(self) -> None:
        from estune.engines.device import engine_device

        here = self.theta_bytes() if self.place.device == "cpu" else 0
        if self._config.engine == "fake" or engine_device(self._config) == "cpu":
            here += self._engines_here() * self._engine_bytes()
        check_memory(int(1.1 * here), f"θ in fp32 and the engine's weights of {self.name}")

    def _engines_here(self) -> int:
        """Engines of this run on this machine, as far as can be known before they are placed."""
        if self._ranks:
            return self._ranks.world // self._ranks.nodes
        return 1 if self._config.ray_address else self._config.num_workers or 1


def _located(source: Any, config: ESConfig, tokenizer: Any) -> tuple[str, Path]:
    """The model's name for the journal, and its folder."""
    if isinstance(source, (str, Path)):
        revision = config.model_revision if isinstance(config, RunConfig) else None
        return str(source), resolve(
            str(source), revision, trust_remote_code=config.trust_remote_code
        )
    if not hasattr(source, "save_pretrained"):
        raise ModelError(
            f"model: {source!r} is neither a hub id, a folder, a .gguf file nor a transformers model"
        )
    if hasattr(source, "peft_config"):
        raise ModelError(
            "model: it carries an adapter, such as LoRA's, and estune tunes whole models; give model.merge_and_unload()"
        )
    folder = Path(config.output_dir) / "base"
    if (
        folder.is_dir()
    ):  # a run that was begun lives by its base, and what else may be there is not overwritten
        _check_same(source, folder)
    else:
        origin = (
            None if tokenizer else _origin(source, config)
        )  # a tokenizer of its own code may save less than it reads
        tokenizer = tokenizer or _tokenizer_of(origin, config)
        with replaced_folder(folder) as scratch:
            _save(source, tokenizer, scratch)
            if origin:
                copy_companions(origin, scratch, but=INDEX)
            sync_tree(scratch)
    return str(folder), folder


def _save(source: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model of transformers, and its tokenizer where there is one, to `folder`."""
    with (
        guarded(ModelError, f"model: transformers cannot write it to {folder}"),
        disk_errors(folder),
    ):
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        with _valid_generation_config(source):
            source.save_pretrained(folder)


@contextmanager
def _valid_generation_config(source: Any) -> Iterator[None]:
    """Keep no more than the end tokens of a generation config that transformers refuses to save; greedy answers need no more."""
    own = getattr(source, "generation_config", None)
    if own is None or _is_valid(own):
        yield
        return
    logger.warning(
        "the model's generation config is not valid, so only its special tokens are kept: greedy answers use no more of it"
    )
    tokens = {
        name: getattr(own, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    source.generation_config = type(own)(**tokens)
    try:
        yield
    finally:
        source.generation_config = own


def _is_valid(generation_config: Any) -> bool:
    try:
        generation_config.validate(strict=True)
        return True
    except Exception:  # transformers has several kinds for it
        return False


def _check_same(source: Any, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        _save(source, None, Path(scratch))
        new, old = open_checkpoint(Path(scratch)), open_checkpoint(folder)
        if new.tensors != old.tensors or not all(
            torch.equal(new.read(name), old.read(name)) for name in new.tensors
        ):
            raise ModelError(
                f"model: it does not have the weights in {folder}, with which a run in {folder.parent} began; "
                "give those, or choose another output_dir"
            )


def _origin(source: Any, config: ESConfig) -> Path:
    """The folder that the model was loaded from, without the hub's weights."""
    if not getattr(source, "name_or_path", ""):
        raise ModelError(
            "processing_class: the model was not loaded from anywhere, so give the tokenizer that belongs to it"
        )
    return resolve(source.name_or_path, trust_remote_code=config.trust_remote_code, weights=False)


def _tokenizer_of(folder: Path | None, config: ESConfig) -> Any:
    from transformers import AutoTokenizer

    with guarded(
        ModelError,
        f"processing_class: no tokenizer could be loaded from {folder}",
        "give the tokenizer",
    ):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
