"""Convert a .gguf into a checkpoint, with the special tokens that the file names.

transformers 5.17 takes a .gguf's token for the beginning of a message for the one at its end,
ignores padding, and adds no tokens around a prompt. llama.cpp puts a beginning-of-text token before
a prompt if `tokenizer.ggml.add_bos_token` is true, and an end token after it if `add_eos_token` is;
models were trained with these.
"""

import hashlib
import logging
import mmap
import os
import struct
from pathlib import Path
from typing import Any

from estune.common.durable import in_turn, replaced_folder
from estune.common.guard import guarded
from estune.errors import ModelError

logger = logging.getLogger(__name__)

_BOOLEAN = 7  # the format's numbers for types of values
_UINT32 = 4
_IN_FILE = {"bos": "bos", "eos": "eos", "pad": "padding"}  # transformers' names → the file's


def convert(path: Path) -> Path:
    """Return the folder of the checkpoint that transformers makes of a .gguf.

    It is kept in a cache, under the digest of the file.

    Raises:
        ModelError: transformers cannot convert it.
    """
    cache = Path(os.environ.get("ESTUNE_CACHE", "~/.cache/estune")).expanduser() / "gguf"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    adds_bos = "-bos" if adds(path, "bos") else ""  # estune once converted these without
    target = cache / f"{path.stem}-{digest.hexdigest()[:16]}{adds_bos}"
    if not (target / "config.json").is_file():
        with in_turn(cache):
            _convert_once(path, target)
    return target


def adds(path: Path, token: str) -> bool | None:
    """Return whether "bos" or "eos" belongs around a plain prompt; None if the file is silent."""
    value = _value(path, f"tokenizer.ggml.add_{token}_token", _BOOLEAN, 1)
    return None if value is None else value == b"\1"


def special(path: Path, token: str) -> int | None:
    """Return the id of "bos", "eos" or "pad"; None if the file does not name it."""
    value = _value(path, f"tokenizer.ggml.{_IN_FILE[token]}_token_id", _UINT32, 4)
    return None if value is None else int.from_bytes(value, "little")


def set_special_tokens(path: Path, tokenizer: Any) -> None:
    """Give a tokenizer that transformers made of the file the file's special tokens."""
    for token in _IN_FILE:
        number = special(path, token)
        if number is not None and number < len(tokenizer):
            setattr(tokenizer, f"{token}_token", tokenizer.convert_ids_to_tokens(number))
    if not hasattr(tokenizer, "backend_tokenizer"):
        return
    added = {token: _adds_now(tokenizer, token) for token in ("bos", "eos")}
    wanted = {}
    for token, now in added.items():
        in_file = adds(path, token)
        known = getattr(tokenizer, f"{token}_token") is not None
        wanted[token] = in_file if in_file is not None and known else now
    if wanted != added:
        _put_around_prompts(tokenizer, [token for token in wanted if wanted[token]])


def _convert_once(path: Path, target: Path) -> None:
    if (target / "config.json").is_file():  # another process converted it while this one waited
        return
    logger.info("converting %s into a checkpoint, once, in %s", path.name, target)
    with (
        replaced_folder(target) as folder,
        guarded(ModelError, f"{path}: transformers cannot convert this .gguf"),
    ):
        _convert(path, folder)


def _convert(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    source, file = str(path.parent), path.name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    set_special_tokens(path, tokenizer)
    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _value(path: Path, name: str, kind: int, size: int) -> bytes | None:
    """Return the `size` bytes of the entry `name`, if the file has one of that type."""
    if not path.stat().st_size:
        return None  # which cannot be mapped
    key = name.encode()
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<I", kind)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        at = content.find(entry)
        return content[at + len(entry) : at + len(entry) + size] if at >= 0 else None


def _adds_now(tokenizer: Any, token: str) -> bool:
    """Return whether the tokenizer puts `token` around a prompt."""
    ids = tokenizer("a")["input_ids"]
    end = 0 if token == "bos" else -1
    return bool(ids) and ids[end] == getattr(tokenizer, f"{token}_token_id")


def _put_around_prompts(tokenizer: Any, tokens: list[str]) -> None:
    """Let the tokenizer add these of "bos" and "eos" to each prompt, and no others."""
    from tokenizers import processors

    texts = {token: getattr(tokenizer, f"{token}_token") for token in tokens}
    parts = [texts.get("bos"), "$A", texts.get("eos")]
    parts = [part for part in parts if part is not None]
    unique = dict.fromkeys(texts.values())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=parts,
        pair=[*parts, "$B:1"],
        special_tokens=[(text, tokenizer.convert_tokens_to_ids(text)) for text in unique],
    )
