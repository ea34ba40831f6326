"""A model's files: found, checked, read tensor by tensor, and written again in the same form.

estune keeps θ under the names of the checkpoint's own files, so what it writes is a checkpoint of the same layout:
same file names, same tensors, same dtypes, same tokenizer. Anything that loads the base model loads the result.
Weights are read from safetensors alone; pickles are refused, since opening one can run code.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from estune.common.durable import disk_errors, in_turn, replaced_folder, sync_tree
from estune.common.guard import guarded
from estune.errors import ModelError, ResourceError
from estune.theta import gguf_tokens, identity
from estune.theta.companions import FORMATS, INDEX, copy_companions

logger = logging.getLogger(__name__)
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Stored:
    """Where one tensor of a checkpoint lies, and what it is."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors files with its config and tokenizer; only their headers have been read."""

    folder: Path
    tensors: dict[str, Stored]

    def read(self, name: str) -> torch.Tensor:
        """The tensor `name` in the file's own dtype."""
        path = self.folder / self.tensors[name].file
        with guarded(ModelError, f"{path}: {name} cannot be read"), safe_open(path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def write(
        self, target: Path, value: Callable[[str], torch.Tensor], extra: Callable[[Path], None]
    ) -> None:
        """Write this checkpoint with other values to `target`, which appears whole or not at all.

        `value(name)` gives each tensor, which is rounded to the file's dtype; `extra` adds further files.
        """
        with replaced_folder(target) as folder:
            for file in sorted({stored.file for stored in self.tensors.values()}):
                names = [name for name, stored in self.tensors.items() if stored.file == file]
                tensors = {name: self._rounded(name, value(name)) for name in names}
                with (
                    guarded(ResourceError, f"{target}: safetensors cannot write {file}"),
                    disk_errors(folder / file),
                ):
                    save_file(tensors, folder / file, metadata={"format": "pt"})
                (folder / file).chmod(0o644)
            advice = "put the base model back and resume the run"
            with guarded(
                ModelError,
                f"{self.folder}: the files besides the weights cannot be copied to {target}",
                advice,
            ):
                copy_companions(self.folder, folder)
            extra(folder)
            sync_tree(folder)

    def _rounded(self, name: str, value: torch.Tensor) -> torch.Tensor:
        rounded = value.to(self.tensors[name].dtype).contiguous()
        if rounded.dtype != value.dtype and not bool(torch.isfinite(rounded).all()):
            raise ModelError(
                f"{name} overflows {rounded.dtype}, the base checkpoint's dtype; start from one in bfloat16 or float32"
            )
        return rounded


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a checkpoint folder.

    Raises:
        ModelError: there are no safetensors weights, or a file of them is damaged or missing.
    """
    if (folder / _ADAPTER).is_file():
        whole = (folder / "config.json").is_file()
        otherwise = (
            f", or take {_ADAPTER} away where the weights are merged already" if whole else ""
        )
        raise ModelError(
            f"{folder}: holds an adapter, such as LoRA's ({_ADAPTER}), and estune tunes whole models; "
            f"merge it into its base first (merge_and_unload, then save_pretrained){otherwise}"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json, so this is not a model folder")
    tensors: dict[str, Stored] = {}
    for file in _weight_files(folder):
        tensors.update(_header(folder, file))
    return Checkpoint(folder, tensors)


def resolve(
    model: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Path:
    """The local folder of a model given as a folder, a .gguf file or a hub id; converts or downloads as needed.

    Without `weights` a hub's model is fetched without them: its config is there, and its tokenizer.

    Raises:
        ModelError: there is no such model, the hub cannot be reached, or a checkpoint of estune's has other weights than it says.
    """
    folder = _found(model, revision, trust_remote_code, weights)
    if weights:
        identity.check_sealed(folder)
    return folder


def _found(model: str, revision: str | None, trust_remote_code: bool, weights: bool) -> Path:
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{model}: no such file")
        return _converted(path.resolve())
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(f"{model}: is neither a folder nor a .gguf file")
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ModelError(f"{model}: no such folder; give a hub id, a local folder or a .gguf file")
    return _downloaded(model, revision, trust_remote_code, weights)


def _weight_files(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        try:
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
            if outside := [file for file in files if Path(file).name != file]:
                raise ValueError(
                    f"{outside[0]} is not in this folder"
                )  # it would be written outside the target, too
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{folder / INDEX}: not an index of weight files ({error}); get the model's files again"
            ) from None
        if "model.safetensors" not in files and (folder / "model.safetensors").is_file():
            raise ModelError(
                f"{folder}: has two sets of weights, model.safetensors and the {len(files)} files of {INDEX}; "
                "libraries differ in which they read, so move one of them away"
            )
        return files
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt*")):
        raise ModelError(
            f"{folder}: its weights are pickles, which can run code; convert them to safetensors first"
        )
    raise ModelError(f"{folder}: no model.safetensors in it")


def _header(folder: Path, name: str) -> Iterator[tuple[str, Stored]]:
    with (
        guarded(ModelError, f"{folder / name}: not a whole safetensors file"),
        safe_open(folder / name, "pt") as file,
    ):
        for tensor in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(tensor)
            yield (
                tensor,
                Stored(name, _dtype(folder, tensor, part.get_dtype()), tuple(part.get_shape())),
            )


def _dtype(folder: Path, tensor: str, name: str) -> torch.dtype:
    names = {
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F64": torch.float64,
    }
    whole = {
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    if name not in names | whole:
        raise ModelError(
            f"{folder}: {tensor} is stored as {name}; fp8 and packed weights cannot be tuned yet"
        )
    return (names | whole)[name]


def _downloaded(model: str, revision: str | None, trust_remote_code: bool, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    unwanted = [f"*.{ending}" for ending in FORMATS if ending != "safetensors"]
    unwanted += ["*/*.safetensors"] if weights else ["*.safetensors"]
    unwanted += [] if trust_remote_code else ["*.py"]
    try:
        return Path(snapshot_download(model, revision=revision, ignore_patterns=unwanted))
    except (
        Exception
    ) as error:  # the hub's client raises a dozen kinds: offline, not found, gated, bad name
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{model}: no such folder here, and the hub did not give it ({type(error).__name__}: {reason}); "
            "give a local folder or a .gguf file, or check the name and the network"
        ) from None


def _converted(path: Path) -> Path:
    """The checkpoint that transformers makes of a .gguf, kept in a cache under the digest of the file."""
    with path.open("rb") as file:
        digest = (
            hashlib.file_digest(file, "sha256")
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read())
        )
    cache = Path(os.environ.get("ESTUNE_CACHE", "~/.cache/estune")).expanduser()
    adds_bos = (
        "-bos" if gguf_tokens.adds(path, "bos") else ""
    )  # earlier versions converted these without
    target = cache / "gguf" / f"{path.stem}-{digest.hexdigest()[:16]}{adds_bos}"
    if not (target / "config.json").is_file():
        with in_turn(target.parent):
            _convert_once(path, target)
    return target


def _convert_once(path: Path, target: Path) -> None:
    if (target / "config.json").is_file():  # by a process that was waited for
        return
    logger.info("converting %s into a checkpoint, once, in %s", path.name, target)
    with (
        replaced_folder(target) as folder,
        guarded(ModelError, f"{path}: transformers cannot convert this .gguf"),
    ):
        _convert(path, folder)


def _convert(path: Path, folder: Path) -> None:
    import transformers

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=transformers.GgufConfig(dequantize=True)
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    gguf_tokens.honour(path, tokenizer)
    if model.generation_config is None:
        model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
