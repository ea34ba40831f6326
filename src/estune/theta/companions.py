"""All files of a model other than its weights: config, tokenizer, code, licence and others.

Weights are excluded by name, instead of listing the other files, because a tokenizer's own code may
read any file.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from estune.theta import identity

INDEX = "model.safetensors.index.json"
FORMATS = (  # endings of weights, and of other trainers' states
    *("safetensors", "bin", "pt", "pth", "ckpt", "h5", "hdf5", "msgpack", "ot", "distcp", "nemo"),
    *("gguf", "ggml", "llamafile", "onnx", "onnx_data", "onnx.data", "tflite", "mlmodel", "engine"),
    *("pkl", "pickle", "npz", "npy", "dduf"),
)
_WEIGHTS = re.compile(rf".*\.({'|'.join(map(re.escape, FORMATS))})(\.index\.json)?", re.IGNORECASE)
_VOCABULARY = re.compile(r"(?!.*safetensors).*(vocab|token|merges)", re.IGNORECASE)
# Useless without the excluded files, or valid for the base model only.
_USELESS = ("trainer_state.json", "adapter_config.json", identity.NAME)
_OF_A_RUN = re.compile(
    r"(journal|metrics)\.jsonl|profile-\d+\.json|reward_error\.txt|completions|theta|final|base"
    r"|(estune-)?(config\.yaml|README\.md)"
)


def companions(folder: Path) -> list[Path]:
    """Return the companions of the weights in `folder`, relative to it, in order."""
    return sorted(_files(folder, folder))


def copy_companions(source: Path, target: Path, skip: str = "") -> None:
    """Copy the companions in `source` to `target`, except `skip` and files that exist there."""
    for path in companions(source):
        if path != Path(skip) and not (target / path).exists():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, target / path)


def _files(folder: Path, root: Path) -> Iterator[Path]:
    run = (folder / "journal.jsonl").is_file()
    if run and folder != root:
        return
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if entry.name.startswith(".") or (run and _OF_A_RUN.fullmatch(entry.name)):
            continue
        if entry.is_dir() and not re.fullmatch(r"checkpoint-\d+|runs|global_step\d+", entry.name):
            yield from _files(path, root)
        elif entry.is_file() and _goes_along(path.relative_to(root)):
            yield path.relative_to(root)


def _goes_along(path: Path) -> bool:
    if path == Path(INDEX):
        return True
    if path.name in _USELESS:
        return False
    return not _WEIGHTS.fullmatch(path.name) or bool(_VOCABULARY.match(path.name))
