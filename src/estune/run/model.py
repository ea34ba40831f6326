"""The model of a run: its checkpoint, its θ, and the workers that evaluate its members.

Each is created when first needed. What the headers of the files show is checked before any weights
are read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from estune import workers
from estune.common.durable import disk_errors
from estune.common.guard import guarded
from estune.common.images import images_in
from estune.common.resources import amount, check_memory
from estune.common.types import Prompt
from estune.config import ESConfig, RunConfig
from estune.engines.device import engine_device, engine_dtype
from estune.errors import ConfigError, DataError, ModelError
from estune.run import estimate
from estune.run.base_model import base_model
from estune.run.placement import Placement, place_theta
from estune.theta.architectures import parts
from estune.theta.checkpoint import Checkpoint, open_checkpoint
from estune.theta.companions import companions
from estune.theta.identity import Identity, seal
from estune.theta.parameters import Layout, layout
from estune.theta.theta import Theta
from estune.workers.base import Workers
from estune.workers.launched_process import find_launched_process
from estune.workers.model_source import ModelSource


class Model:
    """A base model and the θ that is tuned from it.

    Args:
        source: hub id, folder, .gguf file, or a transformers model, which is first written to
            `output_dir/base`.
        config: which parameters to tune, and with which engine.
        tokenizer: used and saved instead of the checkpoint's own.
        prompts: name of a dataset → its prompts, to check that they fit into the context.

    Raises:
        ModelError: there is no such model, or it cannot be tuned.
        ResourceError: the model and θ do not fit into memory.
        ConfigError: `target_parameters` matches nothing.
    """

    def __init__(
        self, source: Any, config: ESConfig, tokenizer: Any, prompts: Mapping[str, Sequence[Prompt]]
    ) -> None:
        self._process = find_launched_process(config.workers)
        self.leads = self._process is None or self._process.leads
        self.name, folder = self._leader_first(partial(base_model, source, config, tokenizer))
        self.checkpoint: Checkpoint = open_checkpoint(folder)
        self.layout: Layout = layout(self.checkpoint, trust_remote_code=config.trust_remote_code)
        self.tuned = self.layout.targets(config.target_parameters)
        if not self.tuned:
            example = next(iter(self.layout.in_model))
            raise ConfigError(
                f"target_parameters: no parameter matches; they are named like {example}"
            )
        self._check_images(prompts)
        self._config = config
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._device = engine_device(config)
        self.placement: Placement = place_theta(
            config, self._device, self.theta_bytes(), self._gpu_bytes
        )
        self._check_memory()

    @cached_property
    def theta(self) -> Theta:
        """θ. It starts as θ₀."""
        read_elsewhere = self._config.engine == "vllm" or self._config.workers != "local"
        page_locked = self._device.startswith("cuda")  # copies to a GPU need one block of memory
        share = self.placement.device == "cpu" and (read_elsewhere or page_locked)
        load = partial(
            Theta.load, self.checkpoint, self.tuned, device=self.placement.device, share=share
        )
        return self._process.theta(load) if self._process else load()

    @cached_property
    def workers(self) -> Workers:
        """The workers. First use them while θ is θ₀: they compare it with the engines' weights."""
        revision = self._config.model_revision if isinstance(self._config, RunConfig) else None
        source = ModelSource(
            self.name, revision, self.checkpoint, self.layout, self.tuned, self._tokenizer
        )
        return workers.start_workers(self.theta, source, self._config, self._prompts, self._process)

    @property
    def loader(self) -> str:
        """The name of the class of transformers that loads the model."""
        return "AutoModelForImageTextToText" if self.layout.sees else "AutoModelForCausalLM"

    def saved_bytes(self) -> int:
        """Return the bytes of one checkpoint."""
        folder = self.checkpoint.folder
        stored = self.checkpoint.tensors.values()
        weights = sum(math.prod(each.shape) * each.dtype.itemsize for each in stored)
        return weights + sum((folder / path).stat().st_size for path in companions(folder))

    def theta_bytes(self) -> int:
        """Return the bytes of θ in fp32."""
        return 4 * self._count(self.tuned)

    def describe(self) -> str:
        """Return one line: which parameters are tuned, and how much memory θ and engines take."""
        tuned, total = self._count(self.tuned), self._count(list(self.layout.in_model))
        engines = self._engines_here()
        weights = "the engine's weights"
        if engines > 1:
            weights = f"the weights of each of {engines} engines"
        part = "all" if tuned == total else f"{tuned:,} of"
        return (
            f"{self.name}: {part} {total:,} parameters tuned; θ in fp32 takes "
            f"{amount(self.theta_bytes())}, {weights} {amount(self._engine_bytes())}"
        )

    def describe_left_out(self) -> str:
        """Return one line about the parts of a model that sees that are not tuned, or nothing."""
        out = [name for name in self.layout.in_model if name in self.layout.vision - {*self.tuned}]
        if not out or self._config.target_parameters is not None:
            return ""
        names = ", ".join(parts(out, set(self.layout.in_model) - self.layout.vision))
        return (
            f"only the language model is tuned: the {self._count(out):,} parameters of {names} are "
            "left out; target_parameters can name them"
        )

    def write(
        self,
        target: Path,
        identity: Identity | None = None,
        add_files: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Write θ as a checkpoint with the base's names, dtypes and files.

        `identity` is recorded in the checkpoint; `add_files` may add files to its folder.
        """

        def value(name: str) -> torch.Tensor:
            kept = self.layout.aliases.get(name, name)
            theta = self.theta.tensors.get(kept)
            if theta is None:
                return self.checkpoint.read(kept)
            return theta if name == kept else theta.clone()  # safetensors refuses shared memory

        def finish(folder: Path) -> None:
            if self._tokenizer is not None:
                what = "processing_class: the tokenizer cannot be saved"
                with guarded(ModelError, what), disk_errors(folder):
                    self._tokenizer.save_pretrained(folder)
            add_files(folder)
            if identity is not None:
                seal(folder, identity)

        self.checkpoint.write(target, value, finish)

    def _check_images(self, prompts: Mapping[str, Sequence[Prompt]]) -> None:
        if self.layout.sees:
            return
        for what, each in prompts.items():
            if (row := next((i for i, one in enumerate(each) if images_in(one)), None)) is not None:
                raise DataError(
                    f"{what}: row {row}: has an image, but {self.name} takes text only; "
                    "give a model that sees, or rename the column"
                )

    def _leader_first(self, locate: Callable[[], tuple[str, Path]]) -> tuple[str, Path]:
        """Call `locate` in the leading process first, since it may write or download the model."""
        if self._process and not self.leads:
            self._process.wait_for("located")
        found = locate()
        if self._process and self.leads:
            self._process.publish("located", True)
        return found

    def _count(self, names: Sequence[str]) -> int:
        return sum(math.prod(self.checkpoint.tensors[name].shape) for name in names)

    @cached_property
    def _itemsize(self) -> int:
        """Bytes per weight in an engine."""
        return 4 if self._config.engine == "fake" else engine_dtype(self._config).itemsize

    def _engine_bytes(self) -> int:
        return self._itemsize * self._count(list(self.layout.in_model))

    def _gpu_bytes(self) -> int:
        """Return the GPU memory that transformers takes, counting a token per two characters."""
        prompts = [prompt for each in self._prompts.values() for prompt in each]
        longest = max((len(str(prompt)) for prompt in prompts), default=0)
        work = estimate.Workload(
            self._config.generation_batch_size, longest // 2, self._config.max_completion_length
        )
        shape = estimate.shape_of(str(self.checkpoint.folder), self._config)
        device, _ = estimate.es_on_gpu(shape, self._config, work, self._itemsize)
        return sum(device.values())

    def _check_memory(self) -> None:
        needed = self.theta_bytes() if self.placement.device == "cpu" else 0
        if self._config.engine == "fake" or self._device == "cpu":
            needed += self._engines_here() * self._engine_bytes()
        check_memory(int(1.1 * needed), f"θ in fp32 and the engine's weights of {self.name}")

    def _engines_here(self) -> int:
        """Return the number of engines on this machine, as far as is known before they start."""
        if self._process:
            return self._process.world_size // self._process.nodes
        return 1 if self._config.ray_address else self._config.num_workers or 1
