"""The processor of a model that sees: it turns a conversation with images into the model's inputs.

Many processors also want a part for videos, which needs torchvision. Where that is missing, such a
processor is loaded without it, since only images are used.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from estune.common.guard import guarded
from estune.errors import ModelError

_FILES = ("processor_config.json", "preprocessor_config.json")


def load_processor(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the processor in `folder`, or None if it has none.

    Raises:
        ModelError: transformers cannot load it, for example because a package is missing.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return None
    with guarded(
        ModelError,
        f"{folder}: its processor, which reads images, cannot be loaded",
        'pip install "estune[vision]" has what most need',
    ):
        from transformers import AutoProcessor

        trusted = {"trust_remote_code": trust_remote_code}
        kind = None if find_spec("torchvision") else _kind_with_videos(folder, trusted)
        if kind is None:
            found = AutoProcessor.from_pretrained(folder, **trusted)
        else:
            found = _load_without_videos(kind, folder, trusted)
    return found if hasattr(found, "image_processor") else None


def without_videos(kind: Any) -> Any:
    """Return the class of processors `kind` with one difference: its part for videos is not used.

    `NoVideos()` may stand in that part's place.
    """

    def check(self: Any, name: str, argument: Any) -> Any:
        if name == "video_processor":
            return type(argument)
        return kind.check_argument_for_proper_class(self, name, argument)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})


class NoVideos(dict[str, Any]):
    """Stands in a processor where one for videos would; empty settings, as which it is shown."""

    model_input_names: tuple[str, ...] = ()


def _kind_with_videos(folder: Path, trusted: dict[str, Any]) -> Any:
    """Return the class of the processor in `folder` if it has a part for videos, else None."""
    import transformers

    name = _class_name(folder, trusted)
    kind = getattr(transformers, name, None) if name else None
    return kind if kind is not None and "video_processor" in kind.get_attributes() else None


def _class_name(folder: Path, trusted: dict[str, Any]) -> str | None:
    """Return the name of the processor's class: from its own files, or by the kind of model."""
    from transformers import AutoConfig, ProcessorMixin
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    if (folder / _FILES[0]).is_file():
        settings, _ = ProcessorMixin.get_processor_dict(folder)
        if named := settings.get("processor_class"):
            return str(named)
    config = AutoConfig.from_pretrained(folder, **trusted)
    known = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    return str(known) if known else None


def _load_without_videos(kind: Any, folder: Path, trusted: dict[str, Any]) -> Any:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    loaders = {
        "image_processor": AutoImageProcessor,
        "tokenizer": AutoTokenizer,
        "feature_extractor": AutoFeatureExtractor,
    }
    names = kind.get_attributes()
    parts = [
        NoVideos()
        if name == "video_processor"
        else loaders[name].from_pretrained(folder, **trusted)
        for name in names
    ]
    settings, _ = kind.get_processor_dict(folder)
    return without_videos(kind).from_args_and_dict(parts, settings)
