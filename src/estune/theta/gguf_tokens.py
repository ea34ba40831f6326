"""What a .gguf says about special tokens, which transformers leaves out or mistakes when it converts one.

transformers 5.17 takes the beginning of a message for its end, and knows no padding; the file names these tokens by their
numbers. llama.cpp puts a beginning-of-text token before a prompt where `tokenizer.ggml.add_bos_token` is true, and an end token behind it
where `add_eos_token` is; the models were trained with that.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

_BOOLEAN, _NUMBER = 7, 4  # the format's numbers for these types of value
_NAMES = {"bos": "bos", "eos": "eos", "pad": "padding"}  # transformers' names and the file's


def adds(path: Path, token: str) -> bool | None:
    """Whether the file says that `token`, bos or eos, goes around a plain prompt; None where it says nothing."""
    value = _value(path, f"tokenizer.ggml.add_{token}_token", _BOOLEAN, 1)
    return None if value is None else value == b"\1"


def special(path: Path, token: str) -> int | None:
    """The number of the special token `token`, bos, eos or pad; None where the file does not say."""
    value = _value(path, f"tokenizer.ggml.{_NAMES[token]}_token_id", _NUMBER, 4)
    return None if value is None else int.from_bytes(value, "little")


def _value(path: Path, name: str, kind: int, size: int) -> bytes | None:
    """The `size` bytes of the entry `name`, if the file has one of that type."""
    key = name.encode()
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<I", kind)
    with path.open("rb") as file:
        if not path.stat().st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.find(entry)
            return content[at + len(entry) : at + len(entry) + size] if at >= 0 else None


def honour(path: Path, tokenizer: Any) -> None:
    """Give `tokenizer`, which transformers made of the file, the special tokens that the file says, and where it wants them."""
    for token in _NAMES:
        number = special(path, token)
        if (
            number is not None
            and number < len(tokenizer)
            and number != getattr(tokenizer, f"{token}_token_id")
        ):
            setattr(tokenizer, f"{token}_token", tokenizer.convert_ids_to_tokens(number))
    if not hasattr(tokenizer, "backend_tokenizer"):
        return
    for token in ("bos", "eos"):
        wanted = adds(path, token)
        if (
            wanted is not None
            and wanted != _added(tokenizer, token)
            and getattr(tokenizer, f"{token}_token") is not None
        ):
            _rebuild(path, tokenizer)
            return


def _added(tokenizer: Any, token: str) -> bool:
    """Whether the tokenizer puts `token` around a prompt as it is."""
    ids, place = tokenizer("a")["input_ids"], 0 if token == "bos" else -1
    return bool(ids) and ids[place] == getattr(tokenizer, f"{token}_token_id")


def _rebuild(path: Path, tokenizer: Any) -> None:
    from tokenizers import processors

    around = {}
    for token in ("bos", "eos"):
        wanted = adds(path, token)
        wanted = _added(tokenizer, token) if wanted is None else wanted
        around[token] = getattr(tokenizer, f"{token}_token") if wanted else None
    parts = [part for part in (around["bos"], "$A", around["eos"]) if part is not None]
    special = [
        (part, tokenizer.convert_tokens_to_ids(part))
        for part in dict.fromkeys(parts)
        if part != "$A"
    ]
    template = processors.TemplateProcessing(
        single=parts, pair=[*parts, "$B:1"], special_tokens=special
    )
    tokenizer.backend_tokenizer.post_processor = template
