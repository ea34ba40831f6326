"""A fingerprint of training rows: a resumed run checks with it that its data are the same.

It depends only on the content of the rows, not on memory addresses, the order of a set or how an
array prints. Rows of plain JSON have the same fingerprint as in earlier versions, so that
their runs can be resumed. Values whose content cannot be compared, such as a lambda, are refused
before a run begins.
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import singledispatch
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
from pydantic import BaseModel

from estune.common.guard import reason
from estune.common.images import ImageFile
from estune.errors import DataError

Rows = Sequence[Mapping[str, Any]]
_MARK = "\0"  # begins a key that names a type which JSON lacks
_LONG = 10_000  # bits; Python refuses to print much longer integers in decimal


def digest(rows: Rows, what: str = "train_dataset") -> str:
    """Return the fingerprint of `rows`; `what` names the data in errors.

    Raises:
        DataError: a value has no comparable content.
    """
    return _hashed(_text(row, f"{what}: row {index}") for index, row in enumerate(rows))


def recorded_or_new(recorded: Any, rows: Rows, new: str) -> str:
    """Return the fingerprint to compare with the `recorded` one of a run that is resumed.

    That is the `new` one, unless an earlier version computed `recorded` from the same rows.
    """
    return str(recorded) if recorded and recorded == _earlier(rows) else new


def _earlier(rows: Rows) -> str | None:
    """Return the fingerprint of earlier versions, which used `str` for values that are not JSON.

    It is stable for dates, for example, but not for pictures, whose `str` contains an address.
    """
    try:
        return _hashed(json.dumps(row, sort_keys=True, default=str) for row in rows)
    except (TypeError, ValueError, RecursionError):  # no run could begin with such rows
        return None


def _hashed(texts: Any) -> str:
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()


def _text(row: Mapping[str, Any], where: str) -> str:
    """Return the row as canonical JSON."""
    try:
        text = json.dumps(row, sort_keys=True, allow_nan=False)
        if json.loads(text) == row:  # then the row holds only JSON's own types
            return text
    except (TypeError, ValueError, RecursionError):
        pass
    columns = {name: f"{where}: column {name!r}" for name in row}
    return _dumped({name: _column(value, columns[name]) for name, value in row.items()})


def _column(value: Any, where: str) -> Any:
    try:
        return _plain(value)
    except RecursionError:
        raise DataError(f"{where} is nested too deeply, or contains itself") from None
    except _Unknown as error:
        held = str(error)
    except Exception as error:  # reading another library's object may raise anything
        held = f"an unreadable value ({reason(error)})"
    raise DataError(
        f"{where} holds {held}; a resumed run could not check that the data are the same. "
        "Make it text, numbers, lists or mappings, or drop the column"
    )


class _Unknown(Exception):
    """A value whose content cannot be compared."""


@singledispatch
def _plain(value: Any) -> Any:
    """Return `value` in JSON's types; another type becomes a mapping with one marked key."""
    if is_dataclass(value) and not isinstance(value, type):
        return _object(value, {each.name: getattr(value, each.name) for each in fields(value)})
    if _is_a(value, "pandas._libs.missing", "NAType"):
        return _tagged("missing", None)
    if _is_a(value, "torch", "Tensor"):
        return _tensor(value)
    if _is_a(value, "PIL.Image", "Image"):
        pixels = _bytes(value.tobytes())
        return _tagged("picture", [value.mode, value.size, value.getpalette(), pixels])
    kind = type(value).__qualname__
    raise _Unknown(f"an object of type {kind}, whose content cannot be compared")


def _integer(value: int) -> Any:
    return int(value) if value.bit_length() < _LONG else _tagged("int", hex(value))


def _float(value: float) -> Any:
    return float(value) if math.isfinite(value) else _tagged("float", str(float(value)))


def _sequence(value: Sequence[Any]) -> Any:
    plain = [_plain(one) for one in value]
    return plain if isinstance(value, list) else _tagged("sequence", plain)


def _mapping(value: Mapping[Any, Any]) -> Any:
    if all(type(key) is str and not key.startswith(_MARK) for key in value):
        return {key: _plain(one) for key, one in value.items()}
    pairs = [(_dumped(_plain(key)), _dumped(_plain(one))) for key, one in value.items()]
    return _tagged("mapping", sorted(pairs))


def _array(value: Any) -> Any:
    array = np.asarray(value)
    content = _plain(array.tolist()) if array.dtype.hasobject else _bytes(array.tobytes())
    return _tagged("array", [str(array.dtype), array.shape, content])


def _date(value: date | time) -> Any:
    return _tagged("date", [value.isoformat(), getattr(value, "fold", 0)])


_BY_TEXT = (complex, Decimal, Fraction, PurePath, UUID, range, timedelta)
_KINDS: dict[tuple[type, ...], Callable[[Any], Any]] = {
    (type(None), bool): lambda value: value,
    (str,): str,
    (int,): _integer,
    (float,): _float,
    _BY_TEXT: lambda value: _tagged(type(value).__name__, str(value)),
    (date, time): _date,
    (datetime,): lambda value: _tagged("datetime", [value.isoformat(), value.fold]),
    (bytes, bytearray, memoryview): lambda value: _tagged("bytes", _bytes(value)),
    (re.Pattern,): lambda value: _tagged("pattern", [_plain(value.pattern), value.flags]),
    (Enum,): lambda value: _tagged("enum", [_name_of(type(value)), value.name]),
    (SimpleNamespace,): lambda value: _object(value, vars(value)),
    (BaseModel,): lambda value: _object(value, dict(value)),
    (Sequence,): _sequence,
    (Set,): lambda value: _tagged("set", sorted(_dumped(_plain(one)) for one in value)),
    (Mapping,): _mapping,
    (np.ndarray, np.generic): _array,
    (ImageFile,): lambda value: _tagged("image", value.digest),
}
for _kinds, _function in _KINDS.items():
    for _kind in _kinds:
        _plain.register(_kind, _function)


def _tensor(value: Any) -> Any:
    import torch

    flat = value.detach().cpu().to_dense().contiguous().reshape(-1)
    content = flat.view(torch.uint8).numpy().tobytes()
    return _tagged("tensor", [str(value.dtype), list(value.shape), _bytes(content)])


def _object(value: Any, content: Mapping[str, Any]) -> Any:
    return _tagged("object", [_name_of(type(value)), _plain(dict(content))])


def _is_a(value: Any, module: str, name: str) -> bool:
    """Whether `value` is an instance of a class from a library that may not be imported yet."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _bytes(value: Any) -> str:
    return hashlib.blake2b(value, digest_size=16).hexdigest()


def _tagged(kind: str, content: Any) -> dict[str, Any]:
    return {_MARK + kind: content}


def _dumped(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True)
