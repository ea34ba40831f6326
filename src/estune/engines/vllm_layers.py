"""What is known of vLLM's layers: which of them hold nothing but the weights that were loaded."""

import re
from collections.abc import Iterator
from typing import Any

import torch

# The part of a layer of the model that a module belongs to, as in `model.layers.3.self_attn`.
_BLOCK = re.compile(r"^.*?\.\d+\.[^.]+")


def is_known(module: Any) -> bool:
    """Whether the direct writer renews everything that vLLM derives from this layer's weights."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

    if type(module) is Attention:
        return not any(True for _ in module.parameters())
    if isinstance(module, AttentionLayerBase):  # latent, linear and Mamba layers
        return False
    if isinstance(module, QuantizeMethodBase):  # that of experts is a module, too
        return _is_plain(module)
    method = getattr(module, "quant_method", None)
    return (method is None or _is_plain(method)) and not hasattr(
        module, "process_weights_after_loading"
    )


def is_familiar(model: torch.nn.Module) -> bool:
    """Whether the part that completes text consists of known layers and has no experts.

    For such models comparing layers' outputs is enough; others are also checked by their logits.
    """
    return all(is_known(one) and not has_experts(one) for one in text_model(model).modules())


def text_model(model: Any) -> torch.nn.Module:
    """Return the language model inside a model that sees; any other model is returned whole."""
    whole: torch.nn.Module = model
    if getattr(model, "supports_multimodal", False):
        whole = model.get_language_model()
    return whole


def has_experts(module: Any) -> bool:
    """Whether the module holds experts."""
    return hasattr(getattr(module, "quant_method", None), "moe_kernel")


def packs_experts(module: Any) -> bool:
    """Whether the module's experts are kept in a packed form, as on a CPU."""
    kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
    on_cpu = all(one.device.type == "cpu" for one in module.parameters(recurse=False))
    return kernel is not None and on_cpu


def unknown_parts(model: torch.nn.Module) -> set[torch.nn.Module]:
    """Return the modules that share a part of a layer, such as its attention, with an unknown one.

    The unknown one may keep something that it derived from the others' weights.
    """
    blocks = {_block(name) for name, module in model.named_modules() if not is_known(module)}
    return {
        module
        for name, module in model.named_modules()
        if any(name == block or name.startswith(f"{block}.") for block in blocks) or "" in blocks
    }


def vocabulary_layers(model: torch.nn.Module) -> tuple[list[Any], list[Any]]:
    """Return the layers of which a CPU build keeps a packed form and the tensor.

    Returns:
        Those that make logits, and those that only look up rows. The latter need no packed form.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    layers = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    packed = [layer for layer in layers if hasattr(layer, "cpu_linear")]
    heads = [layer for layer in packed if isinstance(layer, ParallelLMHead)] or packed
    return heads, [layer for layer in packed if layer not in heads]


def products(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers that multiply their input by a matrix, which may be packed."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for name, module in model.named_modules():
        if isinstance(module, (LinearBase, ParallelLMHead)) and _multiplies(module):
            yield name, module


def _multiplies(module: Any) -> bool:
    """Whether the layer itself multiplies, rather than holding a weight for the layer around it.

    Mamba holds the weight of a convolution in this way, latent attention that of a projection.
    """
    parameters = list(module.parameters(recurse=False))
    if any(one.dim() > 2 for one in parameters) or hasattr(module, "_cpu_skip_gemm_dispatch"):
        return False
    on_cpu = all(one.device.type == "cpu" for one in parameters)
    return hasattr(module, "cpu_linear") or not on_cpu


def _is_plain(method: Any) -> bool:
    """Whether the method, which packs and multiplies, keeps nothing but the packed weights."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod,
    )
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    known = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod, UnquantizedFusedMoEMethod)
    return type(method) in known or _is_router(method)


def _is_router(method: Any) -> bool:
    """Whether it is the method of a router, which derives more only on ROCm."""
    from vllm.model_executor.layers.fused_moe.router import gate_linear

    kind = getattr(gate_linear, "_GateLinearMethod", None)
    return kind is not None and type(method) is kind and torch.version.hip is None


def _block(name: str) -> str:
    found = _BLOCK.match(name)
    return found.group() if found else ""
