"""The part of the engine in vLLM's worker processes: it maps θ and loads variants of it.

Weights go in by their names in the checkpoint, through vLLM's own reloading, which packs, fuses,
ties and splits them and keeps their addresses, so that CUDA graphs remain valid. Once a check has
found that writing them straight to where reloading puts them does the same, that is used instead.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from estune.common.resources import cores, release_freed_memory
from estune.common.types import Variant, variant_from_json
from estune.engines.base import wrong_weights
from estune.engines.vllm_copy_trace import CopyTrace
from estune.engines.vllm_direct_writer import DirectWriter, responses
from estune.errors import EngineError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.shared_memory import Address
from estune.theta.theta import Theta

Weights = Iterable[tuple[str, torch.Tensor]]


class WorkerExtension:
    """Mixed by vLLM into its worker class. The engine calls the methods by name."""

    model_runner: Any
    vllm_config: Any
    device: torch.device
    _estune: "VariantLoader | None" = None

    def estune_attach(
        self, theta: dict[str, Any] | Theta, folder: str, aliases: dict[str, str], ranks: int
    ) -> None:
        """Map θ. Weights that ES does not tune are read from the files in `folder`."""
        if not isinstance(theta, Theta):
            theta = Theta.attach(Address(**theta), threads=max(1, cores() // ranks))
        checkpoint = open_checkpoint(Path(folder))
        frozen = [
            (name, checkpoint.read(name))
            for name in checkpoint.tensors
            if aliases.get(name, name) not in theta.tensors
        ]
        self._estune = VariantLoader(self, theta, frozen)

    def estune_load(self, record: dict[str, Any]) -> None:
        """Take the weights of a variant in JSON form."""
        assert self._estune
        self._estune.load(variant_from_json(record))

    def estune_check(self, record: dict[str, Any]) -> dict[str, int]:
        """Run `VariantLoader.check` for a variant in JSON form."""
        assert self._estune
        return self._estune.check(variant_from_json(record))

    def estune_finite(self) -> bool:
        """Whether the largest logits were always finite since the last call."""
        return self._estune is None or self._estune.logits.were_finite()

    def estune_empty_cache(self) -> None:
        """Put zeros where a member left NaN in the cache of keys and values.

        Attention gives slots without a token the weight 0, and 0 · NaN is NaN.
        """
        for layer in self.model_runner.kv_caches:
            for cache in layer if isinstance(layer, (list, tuple)) else [layer]:
                cache.zero_()


class VariantLoader:
    """Loads variants of θ into the model of one worker.

    Args:
        worker: vLLM's worker.
        theta: θ, mapped in this process.
        frozen: the weights that ES does not tune.

    Attributes:
        dtypes: the dtype in which vLLM holds each parameter, as a check has found.
        direct: writes variants straight to where vLLM keeps weights; None unless proven right.
        logits: watches the model's logits.
    """

    def __init__(
        self, worker: WorkerExtension, theta: Theta, frozen: list[tuple[str, torch.Tensor]]
    ) -> None:
        self._worker = worker
        self._theta = theta
        self._frozen = frozen
        self.dtypes: dict[str, torch.dtype] = {}
        self.direct: DirectWriter | None = None
        self.logits = LogitsWatch(self.model)

    @property
    def model(self) -> Any:
        return self._worker.model_runner.get_model()

    def load(self, variant: Variant) -> None:
        """Take the variant's weights.

        Raises:
            EngineError: a weight was not taken.
        """
        if self.direct is None:
            self._reload(self.weights(variant))
            return
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self._worker.vllm_config), torch.inference_mode():
            self.direct.load(self._theta, variant, self._frozen)

    def check(self, variant: Variant) -> dict[str, int]:
        """Load other weights, then the variant's, and try to write them directly.

        Returns:
            The number of weights of each parameter that vLLM copied.

        Raises:
            EngineError: a part of the model did not change with its weights, or did not hold the
                variant's before.
        """
        self.dtypes = {}
        self.direct = None
        before = responses(self.model)
        self._reload((name, tensor + 1) for name, tensor in self.weights(variant))
        changed = responses(self.model)
        with CopyTrace(self.model) as trace:
            self._reload(trace.watched(self.weights(variant)))
        after = responses(self.model)
        for name, response in before.items():
            if torch.equal(response, changed[name]):
                raise EngineError(f"vLLM does not take new weights in {name}")
            if not torch.equal(response, after[name]):
                raise wrong_weights(variant, name)
        self.dtypes = trace.dtypes
        writer = DirectWriter.learn(trace, self.model, self._theta.tensors)
        if writer is not None:
            self._try_direct(writer, variant, after)
        release_freed_memory()
        return dict(trace.taken)

    def weights(self, variant: Variant) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield all weights of the model by their names in the checkpoint."""
        yield from self._frozen
        yield from self._theta.perturbed(variant, self._empty)

    def _try_direct(
        self, writer: DirectWriter, variant: Variant, wanted: dict[str, torch.Tensor]
    ) -> None:
        """Use `writer` from now on if it turns other weights into the variant's."""
        tuned = self._theta.tensors
        self._reload((name, tensor + (name in tuned)) for name, tensor in self.weights(variant))
        self.direct = writer
        self.load(variant)
        found = responses(self.model)
        if not all(torch.equal(response, found[name]) for name, response in wanted.items()):
            self.direct = None
            self.load(variant)

    def _empty(self, name: str) -> torch.Tensor:
        """Return a new tensor for a parameter, in host memory unless its dtype in vLLM is known.

        It must be new each time, since vLLM keeps it until all that it is fused with has come. In
        fp32 the parameters may not fit on the device.
        """
        shape = self._theta.tensors[name].shape
        dtype = self.dtypes.get(name)
        if dtype is None:
            return torch.empty(shape)
        return torch.empty(shape, dtype=dtype, device=self._worker.device)

    def _reload(self, weights: Weights) -> None:
        """Do what vLLM's `reload_weights` does, which only warns of weights that were not loaded.

        Raises:
            EngineError: a parameter was not loaded.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        model = self.model
        config = self._worker.vllm_config
        with set_current_vllm_config(config), torch.inference_mode():
            wanted = {name for name, _ in model.named_parameters()}  # counts tied ones once
            initialize_layerwise_reload(model)
            try:
                loaded = model.load_weights(weights)
            finally:  # also when a member overflows, so that the next one finds the model whole
                finalize_layerwise_reload(model, config.model_config)
            for head in _tied_heads(model):
                head.quant_method.process_weights_after_loading(head)
        if loaded is not None and (missed := sorted(wanted - loaded)):
            raise EngineError(
                f"vLLM did not load {len(missed)} of its parameters, {missed[0]} among them"
            )


class LogitsWatch:
    """Wraps the `compute_logits` of a model and notes whether the largest logits are finite."""

    def __init__(self, model: Any) -> None:
        model.__dict__.pop("compute_logits", None)  # the watch of an earlier θ
        self._compute = model.compute_logits
        self._finite = torch.tensor(True)
        model.compute_logits = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        logits = self._compute(*args, **kwargs)
        # Only some ranks of a tensor-parallel engine have logits.
        if logits is not None and logits.numel():
            finite = torch.isfinite(logits.amax(-1)).all()
            self._finite = self._finite.to(logits.device) & finite
        return logits

    def were_finite(self) -> bool:
        """Whether all were finite since the last call."""
        finite = bool(self._finite)
        self._finite = torch.tensor(True)
        return finite


def _tied_heads(model: torch.nn.Module) -> list[Any]:
    """Return output layers that share the input embedding.

    vLLM's reloading skips them, although on a CPU they are packed separately.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    heads = [module for module in model.modules() if isinstance(module, ParallelLMHead)]
    return [head for head in heads if _shares_parameters(model, head)]


def _shares_parameters(model: torch.nn.Module, head: torch.nn.Module) -> bool:
    mine = {id(parameter) for parameter in head.parameters()}
    others = (module for module in model.modules() if module is not head)
    return any(
        id(parameter) in mine for module in others for parameter in module.parameters(recurse=False)
    )
