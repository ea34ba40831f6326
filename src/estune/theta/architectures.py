"""Which models can be tuned, by their architecture: those that generate text, some of which see.

A model that sees also takes images. Its language model is tuned; what turns images into its
embeddings, the vision tower and the projector, is tuned only if `target_parameters` names it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from estune.errors import ModelError


def sees(config: Any) -> bool:
    """Whether the model of a transformers config takes images and generates text."""
    from transformers.models.auto import modeling_auto

    known = set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    if architectures := getattr(config, "architectures", None):
        return bool(known & set(architectures))
    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    kind = getattr(config, "model_type", "")
    names = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return kind in names and kind not in causal


def auto_class(config: Any) -> Any:
    """Return the class of transformers that loads the model of `config`."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if sees(config) else AutoModelForCausalLM


def check_architecture(config: Any, where: Any) -> None:
    """Check that the model of `config` continues a prompt with text.

    Raises:
        ModelError: it does not, or is quantised.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    if getattr(config, "quantization_config", None):
        raise ModelError(f"{where}: is quantised; give the model's full-precision checkpoint")
    architectures = config.architectures or []
    remote = "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if remote or not architectures:
        return
    seeing = sees(config)
    if seeing and getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{where}: {architectures[0]} has an encoder and a decoder, which cannot be tuned; "
            "give a model that continues its prompt, such as a Qwen2VLForConditionalGeneration"
        )
    if not seeing and not set(CAUSAL.values()) & set(architectures):
        raise ModelError(
            f"{where}: {architectures[0]} is no causal language model; "
            "give one that generates text, such as a LlamaForCausalLM, from text or images "
            "(video, sound and images as output are not supported)"
        )


def outside_language(model: Any) -> set[int]:
    """Return the ids of the parameters of a model that sees outside its language model."""
    language = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    within = {id(one) for module in language if module is not None for one in module.parameters()}
    return {id(one) for one in model.parameters()} - within


def parts(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return the shortest dotted beginnings of `names` that begin none of `others`."""
    taken = {start for name in others for start in _starts(name)}
    found = (next((start for start in _starts(name) if start not in taken), name) for name in names)
    return list(dict.fromkeys(found))


def _starts(name: str) -> list[str]:
    pieces = name.split(".")
    return [".".join(pieces[:count]) for count in range(1, len(pieces) + 1)]
