"""Find a model's files, check and read them, and write them again with other weights.

A written checkpoint has the base model's file names, tensors, dtypes and tokenizer, so whatever
loads the base model loads the result. Weights are read from safetensors only; pickles are refused,
because opening one can run code.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from estune.common.durable import disk_errors, replaced_folder, sync_tree
from estune.common.guard import guarded, reason
from estune.errors import ModelError, ResourceError
from estune.theta import gguf_conversion, identity
from estune.theta.companions import FORMATS, INDEX, copy_companions

_ADAPTER = "adapter_config.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """The file, dtype and shape of one tensor of a checkpoint."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A folder of safetensors files with config and tokenizer, and what the headers say."""

    folder: Path
    tensors: dict[str, Stored]

    def read(self, name: str) -> torch.Tensor:
        """Return the tensor `name` in the file's dtype."""
        path = self.folder / self.tensors[name].file
        with guarded(ModelError, f"{path}: {name} cannot be read"), safe_open(path, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors `names`, one file after the other, each opened once.

        A mixture of experts has tens of thousands, and opening a file reads all their names.
        """
        in_file: dict[str, list[str]] = {}
        for name in names:
            in_file.setdefault(self.tensors[name].file, []).append(name)
        for file, those in in_file.items():
            path = self.folder / file
            with guarded(ModelError, f"{path}: cannot be read"), safe_open(path, "pt") as opened:
                for name in those:
                    yield name, opened.get_tensor(name)

    def write(
        self, target: Path, value: Callable[[str], torch.Tensor], extra: Callable[[Path], None]
    ) -> None:
        """Write this checkpoint with other values to `target`, whole or not at all.

        Args:
            value: returns each tensor by name; it is rounded to the file's dtype.
            extra: adds further files to the folder.
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
            what = f"{self.folder}: the files besides the weights cannot be copied to {target}"
            with guarded(ModelError, what, "put the base model back and resume the run"):
                copy_companions(self.folder, folder)
            extra(folder)
            sync_tree(folder)

    def _rounded(self, name: str, value: torch.Tensor) -> torch.Tensor:
        rounded = value.to(self.tensors[name].dtype).contiguous()
        if rounded.dtype != value.dtype and not bool(torch.isfinite(rounded).all()):
            raise ModelError(
                f"{name} overflows {rounded.dtype}, the base checkpoint's dtype; "
                "start from one in bfloat16 or float32"
            )
        return rounded


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a checkpoint in `folder`.

    Raises:
        ModelError: there are no safetensors weights, or a file of them is damaged or missing.
    """
    whole = (folder / "config.json").is_file()
    if (folder / _ADAPTER).is_file():
        otherwise = f", or remove {_ADAPTER} if the weights are merged already" if whole else ""
        raise ModelError(
            f"{folder}: holds an adapter, such as LoRA's ({_ADAPTER}), and estune tunes whole "
            "models; merge it into its base first (merge_and_unload, then save_pretrained)"
            f"{otherwise}"
        )
    if not whole:
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
    """Return the local folder of a model; a .gguf is converted, and a hub's model downloaded.

    Args:
        model: a folder, a .gguf file or a hub id.
        weights: if False, only the config and tokenizer of a hub's model are downloaded.

    Raises:
        ModelError: there is no such model, the hub cannot be reached, or a checkpoint that estune
            wrote has other weights than it says.
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
        return gguf_conversion.convert(path.resolve())
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(f"{model}: is neither a folder nor a .gguf file")
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ModelError(f"{model}: no such folder; give a hub id, a local folder or a .gguf file")
    return _downloaded(model, revision, trust_remote_code, weights)


def _weight_files(folder: Path) -> list[str]:
    single = (folder / "model.safetensors").is_file()
    if (folder / INDEX).is_file():
        files = _indexed(folder)
        if single and "model.safetensors" not in files:
            raise ModelError(
                f"{folder}: has two sets of weights, model.safetensors and the {len(files)} files "
                f"of {INDEX}; libraries differ in which they read, so move one of them away"
            )
        return files
    if single:
        return ["model.safetensors"]
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt*")):
        raise ModelError(
            f"{folder}: its weights are pickles, which can run code; convert them to safetensors "
            "first"
        )
    raise ModelError(f"{folder}: no model.safetensors in it")


def _indexed(folder: Path) -> list[str]:
    """Return the files that the index names."""
    try:
        files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        if outside := [file for file in files if Path(file).name != file]:
            # it would be written outside the target, too
            raise ValueError(f"{outside[0]} is not in this folder")
        return files
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder / INDEX}: not an index of weight files ({error}); get the model's files again"
        ) from None


def _header(folder: Path, name: str) -> Iterator[tuple[str, Stored]]:
    with (
        guarded(ModelError, f"{folder / name}: not a whole safetensors file"),
        safe_open(folder / name, "pt") as file,
    ):
        for tensor in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(tensor)
            dtype = part.get_dtype()
            if dtype not in _DTYPES:
                raise ModelError(
                    f"{folder}: {tensor} is stored as {dtype}; fp8 and packed weights cannot be "
                    "tuned yet"
                )
            yield tensor, Stored(name, _DTYPES[dtype], tuple(part.get_shape()))


def _downloaded(model: str, revision: str | None, trust_remote_code: bool, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    unwanted = [f"*.{ending}" for ending in FORMATS if ending != "safetensors"]
    unwanted += ["*/*.safetensors"] if weights else ["*.safetensors"]
    unwanted += [] if trust_remote_code else ["*.py"]
    try:
        return Path(snapshot_download(model, revision=revision, ignore_patterns=unwanted))
    except Exception as error:  # the client raises a dozen kinds: offline, not found, gated, …
        raise ModelError(
            f"{model}: no such folder here, and the hub did not give it ({reason(error)}); "
            "give a local folder or a .gguf file, or check the name and the network"
        ) from None
