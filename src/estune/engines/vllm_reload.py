"""vLLM's own reloading of weights, with repairs where it silently keeps using old weights.

Reloading takes a layer apart, buffers what arrives until the layer is whole, fuses, copies, packs
and reassembles, and it keeps the addresses of weights, so that CUDA graphs remain valid. In 0.32 it
leaves out:

- experts on a CPU, which are packed at the first load only;
- parameters that a model's loader copies itself, as gpt_oss does with experts, their biases and
  attention sinks: the copy goes to a placeholder without memory;
- views of a convolution's weight that was packed, as in Mamba layers on a CPU;
- an output layer that shares the input embedding, which a CPU packs separately;
- the projection of a latent attention (MLA), whose memory is given back once it is packed;
- the rounding of biases, which a CPU keeps in fp32.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from estune.engines.vllm_layers import packs_experts
from estune.errors import EngineError

Weights = Iterable[tuple[str, torch.Tensor]]


class Reloader:
    """Reloads weights into a vLLM model by their names in the checkpoint.

    Args:
        model: the model of one worker, as vLLM first loaded it.
        config: the worker's settings, `VllmConfig`.
    """

    def __init__(self, model: Any, config: Any) -> None:
        self._model = model
        self._config = config
        self._experts = [one for one in model.modules() if packs_experts(one)]
        self._convolutions = list(_packed_convolutions(model))
        self._projections = list(_released_projections(model))
        # Layers whose loader copies at once, past the wrappers with which vLLM buffers tensors.
        self._unbuffered: set[Any] = set()

    def load(
        self, weights: Callable[[], Weights], only: Collection[torch.nn.Module] | None = None
    ) -> None:
        """Take the tensors that `weights()` yields; it may be called twice.

        Args:
            only: the layers that the weights fill; None means all.

        Raises:
            EngineError: a parameter was not loaded.
        """
        if not self._load(weights(), only):
            self._load(weights(), only)

    def _load(self, weights: Weights, only: Collection[torch.nn.Module] | None) -> bool:
        """Reload; return False if it must be repeated because a layer did not take its weights."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        model = self._model
        names = {id(one): name for name, one in model.named_parameters()}  # tied ones once
        placed = self._parameters_of(names, only)
        with (
            set_current_vllm_config(self._config),
            torch.inference_mode(),
            _packing_again(self._experts),
        ):
            for layer, memory in self._projections:
                layer.weight = torch.nn.Parameter(memory, requires_grad=False)
            initialize_layerwise_reload(model)
            try:
                self._prepare_unbuffered(only)
                loaded = model.load_weights(weights)
                found = self._find_unbuffered(loaded)
            finally:  # also when a member overflows, so that the next one finds the model whole
                finalize_layerwise_reload(model, self._config.model_config)
            self._renew_copies()
        if loaded is not None and (missed := sorted(placed - loaded)):
            raise EngineError(
                f"vLLM did not load {len(missed)} of its parameters, {missed[0]} among them"
            )
        return not found

    def _parameters_of(
        self, names: dict[int, str], only: Collection[torch.nn.Module] | None
    ) -> set[str]:
        if only is None:
            return set(names.values())
        own = [one for module in only for one in module.parameters(recurse=False)]
        return {names[id(one)] for one in own if id(one) in names}

    def _prepare_unbuffered(self, only: Collection[torch.nn.Module] | None) -> None:
        """Give memory to the layers whose loader copies into them at once."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
        from vllm.model_executor.model_loader.reload.meta import materialize_layer

        for layer in self._unbuffered:
            if only is None or layer in only:
                info = get_layerwise_info(layer)
                materialize_layer(layer, info)
                info.load_numel = 1  # lets vLLM process the layer at the end

    def _find_unbuffered(self, loaded: set[str] | None) -> bool:
        """Remember layers whose loader bypassed vLLM's wrappers; return whether any is new."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        found = False
        loaded = loaded or set()
        for prefix, layer in self._model.named_modules():
            info = get_layerwise_info(layer)
            if not info.can_load() or layer in self._unbuffered:
                continue
            buffered = {name for name, _ in info.loaded_weights}
            parameters = layer.named_parameters(recurse=False)
            own = {name for name, parameter in parameters if parameter.is_meta}
            if any(f"{prefix}.{name}" in loaded for name in own - buffered):
                self._unbuffered.add(layer)
                found = True
        return found

    def _renew_copies(self) -> None:
        round_biases(self._model)
        for view, layer in self._convolutions:
            view.copy_(layer._cpu_unpacked_conv_weight.view_as(view))
        for head in _tied_heads(self._model):
            head.quant_method.process_weights_after_loading(head)


def round_biases(model: torch.nn.Module) -> None:
    """Round biases to the dtype that the model computes in, as the first load did.

    On a CPU vLLM rounds them when it loads them, and then keeps them in fp32. Later loads find
    fp32.
    """
    for module in model.modules():
        dtype = getattr(module, "params_dtype", None)
        bias = module._parameters.get("bias")
        if dtype and bias is not None and bias.dtype != dtype:
            bias.data.copy_(bias.to(dtype))


@contextmanager
def _packing_again(experts: Iterable[Any]) -> Iterator[None]:
    """Let vLLM pack experts as at the first load: it does so only while they have no kernel.

    The kernel stays the same object, since it refers to the parameters whose memory stays.
    """
    kept = [(one.quant_method, dict(vars(one.quant_method))) for one in experts]
    try:
        for method, _ in kept:
            method.moe_kernel = None
        yield
    finally:
        for method, attributes in kept:
            method.moe_kernel = attributes["moe_kernel"]
            method.moe_quant_config = attributes["moe_quant_config"]


def _packed_convolutions(model: torch.nn.Module) -> Iterator[tuple[torch.Tensor, Any]]:
    """Yield each buffer that holds a convolution's weight as it was before packing, and the layer.

    vLLM makes the buffer as a view of the weight, which packing replaces.
    """
    for module in model.modules():
        for layer in module.children():
            weight: torch.Tensor | None = getattr(layer, "_cpu_unpacked_conv_weight", None)
            if weight is None:
                continue
            for buffer in module.buffers(recurse=False):
                if buffer.numel() == weight.numel() and torch.equal(buffer, weight.view_as(buffer)):
                    yield buffer, layer


def _released_projections(model: torch.nn.Module) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yield each projection of a latent attention whose memory vLLM gave back, and new memory.

    Every reload packs it again, even one that loads no weights into it, so the new memory is kept.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    for module in model.modules():
        layer = getattr(module, "kv_b_proj", None)
        if getattr(module, "is_amx_bmm_enabled", False) and layer is not None:
            loaded = get_layerwise_info(layer).restore_metadata[0]["weight"]
            yield layer, torch.zeros(loaded.shape, dtype=loaded.dtype)


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
