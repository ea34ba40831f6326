"""What a .gguf says about the tokens around a plain prompt, which transformers leaves out when it converts one.

llama.cpp puts a beginning-of-text token before a prompt where `tokenizer.ggml.add_bos_token` is true, and an end token behind it
where `add_eos_token` is; the models were trained with that.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

_BOOLEAN = struct.pack("<I", 7)  # the format's number for that type of value


def adds(path: Path, token: str) -> bool | None:
    """Whether the file says that `token`, bos or eos, goes around a plain prompt; None where it says nothing."""
    key = f"tokenizer.ggml.add_{token}_token".encode()
    entry = struct.pack("<Q", len(key)) + key + _BOOLEAN
    with path.open("rb") as file:
        if not path.stat().st_size:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.find(entry)
            value = content[at + len(entry) : at + len(entry) + 1]
    return value == b"\1" if at >= 0 else None


def honour(path: Path, tokenizer: Any) -> None:
    """Let `tokenizer`, which transformers made of the file, put around a plain prompt what the file says."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return
    for token in ("bos", "eos"):
        wanted = adds(path, token)
        if wanted is not None and wanted != _added(tokenizer, token) and getattr(tokenizer, f"{token}_token") is not None:
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
    special = [(part, tokenizer.convert_tokens_to_ids(part)) for part in dict.fromkeys(parts) if part != "$A"]
    template = processors.TemplateProcessing(single=parts, pair=[*parts, "$B:1"], special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = template
