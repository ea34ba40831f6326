"""The files that go along with a model's weights: config, tokenizer, code, licence, anything else.

Weights are recognised and left out, rather than the others listed: nobody can list the files that a
tokenizer with code of its own reads.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from estune.theta import identity

INDEX = "model.safetensors.index.json"
FORMATS = (  # endings of weights, and of what other trainers keep of theirs
    *("safetensors", "bin", "pt", "pth", "ckpt", "h5", "hdf5", "msgpack", "ot", "distcp", "nemo"),
    *("gguf", "ggml", "llamafile", "onnx", "onnx_data", "onnx.data", "tflite", "mlmodel", "engine"),
    *("pkl", "pickle", "npz", "npy", "dduf"),
)
_WEIGHTS = re.compile(rf".*\.({'|'.join(map(re.escape, FORMATS))})(\.index\.json)?", re.IGNORECASE)
_VOCABULARY = re.compile(r"(?!.*safetensors).*(vocab|token|merges)", re.IGNORECASE)
# Useless without the files that are left out, or true of the base alone.
_USELESS = ("trainer_state.json", "adapter_config.json", identity.NAME)
_OF_A_RUN = re.compile(
    r"(journal|metrics)\.jsonl|profile-\d+\.json|reward_error\.txt|completions|theta|final|base"
    r"|(estune-)?(config\.yaml|README\.md)"
)


def companions(folder: Path) -> list[Path]:
    """The files that go along with the weights in `folder`, relative to it, in order."""
    return sorted(_files(folder, folder))


def copy_companions(source: Path, target: Path, but: str = "") -> None:
    """Copy them to `target`, except what is there already, and except the file `but`."""
    for path in companions(source):
        if path != Path(but) and not (target / path).exists():
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
