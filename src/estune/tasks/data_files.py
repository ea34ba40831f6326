"""Read local data files without changing their values.

Everything in CSV stays text, and JSON's numbers stay JSON's. No type is inferred, no path expanded,
nothing cached. Parquet has types of its own; its rows are read through datasets, which knows
pictures and class labels.
"""

import csv
import gzip
import io
import json
import math
import re
import sys
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from estune.common.guard import reason
from estune.errors import DataError

ENDINGS = (".json", ".jsonl", ".parquet", ".csv")
_MARKS = {  # the longer first: UTF-16's mark begins UTF-32's
    BOM_UTF32_LE: "utf-32",
    BOM_UTF32_BE: "utf-32",
    BOM_UTF8: "utf-8-sig",
    BOM_UTF16_LE: "utf-16",
    BOM_UTF16_BE: "utf-16",
}
_SPACE = re.compile(r"[ \t\n\r]*")


def is_data_file(path: Path) -> bool:
    """Whether the name's ending is one that `read` knows."""
    return _ending(path) in ENDINGS


def read(path: Path, name: str) -> list[Any]:
    """Return the rows of a file: mappings, or whatever else it has in their place.

    `name` names the file in errors.

    Raises:
        DataError: the file is damaged, or of an unknown kind.
    """
    if not is_data_file(path):
        endings = ", ".join(ENDINGS)
        raise DataError(f"{name}: a data file must end in {endings}, or in one of these and .gz")
    data = _bytes(path, name)
    if _ending(path) == ".parquet":
        return _parquet(data, name)
    text = decoded(data, name)
    return list(_csv(text, name)) if _ending(path) == ".csv" else _json(text, name)


def decoded(data: bytes, name: str) -> str:
    """Return the text of a file in UTF-8, or in the encoding of its byte order mark.

    Raises:
        DataError: it is in another encoding.
    """
    declared = (encoding for mark, encoding in _MARKS.items() if data.startswith(mark))
    encoding = next(declared, "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"line {data.count(bytes([10]), 0, error.start) + 1}"
        why = f"{where} is not {encoding}: {error.reason}"
        raise DataError(f"{name}: cannot be read ({why}); save the file as UTF-8") from None


def without_added_keys(rows: Iterable[Any]) -> list[Any]:
    """Return rows from Arrow without the keys that it added to mappings in them.

    Arrow gives every mapping in a column the keys of all of them; added keys have the value None.
    """
    return [_row(row) if isinstance(row, Mapping) else row for row in undecoded(rows)]


def undecoded(dataset: Any) -> Any:
    """Return the dataset with images, sound and videos as bytes or paths.

    Images are decoded when they are needed; decoders of the others need further packages.
    """
    for name, feature in (getattr(dataset, "features", None) or {}).items():
        if (raw := _raw(feature)) is not None:
            dataset = dataset.cast_column(name, raw)
    return dataset


def _raw(feature: Any) -> Any:
    """Return the feature without decoding, or None if nothing of it is decoded."""
    kind = type(feature).__name__
    if kind in ("Audio", "Image", "Video"):
        return type(feature)(decode=False) if feature.decode else None
    inner = getattr(feature, "feature", None)  # of a list
    raw = _raw(inner) if inner is not None else None
    return None if raw is None else type(feature)(raw)


def parsed(text: str, name: str) -> Iterator[Any]:
    """Yield the JSON values that follow one another in `text`.

    Raises:
        DataError: it is not JSON, repeats a key, or has a number that a float cannot hold.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_mapping, parse_float=_number)
    position = _SPACE.match(text).end()  # type: ignore[union-attr]
    while position < len(text):
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}: {error.msg}, column {error.colno}"
            raise DataError(f"{name}: cannot be read ({where})") from None
        except (ValueError, RecursionError) as error:  # ValueError: also an integer of 5,000 digits
            where = f"the JSON from line {text.count(chr(10), 0, position) + 1} on"
            why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise DataError(f"{name}: cannot be read ({where}: {why})") from None
        yield value
        position = _SPACE.match(text, end).end()  # type: ignore[union-attr]


def _ending(path: Path) -> str:
    return Path(path.stem if _is_packed(path) else path.name).suffix.lower()


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _bytes(path: Path, name: str) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if _is_packed(path) else data
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or reason(error)
        raise DataError(f"{name}: cannot be read ({why})") from None


def _json(text: str, name: str) -> list[Any]:
    """Return the rows of JSON lines, an array of objects, `{"data": [...]}`, or a single object."""
    values = list(parsed(text, name))
    if len(values) > 1:
        return values
    only = values[0] if values else []
    if isinstance(only, dict) and isinstance(only.get("data"), list) and "prompt" not in only:
        only = only["data"]
    return only if isinstance(only, list) else [only]


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return mapping


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large for a float; write it as a string")
    return number


def _csv(text: str, name: str) -> Iterator[Any]:
    """Yield mappings of text, and a DataError in place of a line without one field per column."""
    lines = _fields(text, name)
    columns = next(lines, [])
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise DataError(f"{name}: has two columns {twice!r}; rename one")
    if "prompt" not in columns and len(columns) == 1 and re.search("[;\t|]", columns[0]):
        first = f"its first line is {columns[0]!r:.100}"
        raise DataError(f"{name}: {first}; columns must be separated by commas")
    for fields in lines:
        if len(fields) == len(columns):
            yield dict(zip(columns, fields, strict=True))
        else:
            yield DataError(f"has {len(fields)} fields for {len(columns)} columns")


def _fields(text: str, name: str) -> Iterator[list[str]]:
    """Yield the fields of each line that is not empty."""
    limit = csv.field_size_limit(sys.maxsize)  # a prompt may be longer than csv's 128 KiB
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from filter(None, lines)
    except csv.Error as error:
        raise DataError(f"{name}: cannot be read (line {lines.line_num}: {error})") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(data: bytes, name: str) -> list[Any]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]
    from datasets import Dataset

    try:
        return without_added_keys(Dataset(pyarrow.parquet.read_table(pyarrow.BufferReader(data))))
    except Exception as error:  # pyarrow and datasets raise many kinds on a damaged file
        raise DataError(f"{name}: cannot be read ({reason(error)})") from None


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _without_none(value) for name, value in row.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):  # Arrow's lists hold values of one type
        first = next((one for one in value if one is not None), None)
        return (
            [_without_none(one) for one in value] if isinstance(first, (Mapping, list)) else value
        )
    return value
