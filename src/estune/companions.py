"""What goes along with a model's weights: config, tokenizer, code, licence, whatever the folder holds that is not weights.

It is told by what is left out, since nobody can list the files that a tokenizer of a model's own code reads.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

INDEX = "model.safetensors.index.json"
FORMATS = (  # endings of weights, and of what other trainers keep of theirs
    *("safetensors", "bin", "pt", "pth", "ckpt", "h5", "hdf5", "msgpack", "ot", "pkl", "pickle", "npz", "npy", "distcp"),
    *("gguf", "ggml", "llamafile", "onnx", "onnx_data", "onnx.data", "tflite", "mlmodel", "nemo", "engine", "dduf"),
)
_WEIGHTS = re.compile(rf".*\.({'|'.join(map(re.escape, FORMATS))})(\.index\.json)?", re.IGNORECASE)
_VOCABULARY = re.compile(r"(?!.*safetensors).*(vocab|token|merges)", re.IGNORECASE)
_OF_ANOTHER = ("trainer_state.json", "adapter_config.json")  # nothing without the files that are left out
_OF_A_RUN = re.compile(
    r"journal\.jsonl|metrics\.jsonl|profile-\d+\.json|reward_error\.txt|(estune-)?config\.yaml|(estune-)?README\.md|completions|theta|final|base"
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
    return path.name not in _OF_ANOTHER and (not _WEIGHTS.fullmatch(path.name) or bool(_VOCABULARY.match(path.name)))
