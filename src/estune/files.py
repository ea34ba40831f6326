"""Local data files, read as they are written: what the file says is what a reward function gets.

Text stays text, in CSV all of it, and JSON's numbers stay JSON's. No type is inferred, no path expanded, nothing cached.
Parquet has types of its own; its rows are read through datasets, which knows pictures and class labels.
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
    """Whether the name ends as that of a file which `read` reads."""
    return _ending(path) in ENDINGS


def read(path: Path, name: str) -> list[Any]:
    """The rows of a file, as mappings; what it has in the place of a mapping is given as it is. `name` stands in errors.

    Raises:
        DataError: the file is damaged, or of a kind that is not known.
    """
    if not is_data_file(path):
        raise DataError(f"{name}: a data file must end in {', '.join(ENDINGS)}, or in one of these and .gz")
    data = _bytes(path, name)
    if _ending(path) == ".parquet":
        return _parquet(data, name)
    text = decoded(data, name)
    return list(_csv(text, name)) if _ending(path) == ".csv" else _json(text, name)


def decoded(data: bytes, name: str) -> str:
    """The text of a file in UTF-8, or in the encoding that its byte order mark declares.

    Raises:
        DataError: it is in another encoding.
    """
    encoding = next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}: cannot be read (line {line} is not {encoding}: {error.reason}); save the file as UTF-8") from None


def without_added_keys(rows: Iterable[Any]) -> list[Any]:
    """Rows out of Arrow without the keys that it added to mappings in them.

    Arrow gives every mapping of a column the keys of all of them, and the value None where there was none.
    """
    return [_row(row) if isinstance(row, Mapping) else row for row in undecoded(rows)]


def undecoded(dataset: Any) -> Any:
    """A dataset whose sound and videos are bytes: decoders have no content to compare, and need packages that training does not."""
    for name, feature in (getattr(dataset, "features", None) or {}).items():
        if type(feature).__name__ in ("Audio", "Video") and feature.decode:
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


def parsed(text: str, name: str) -> Iterator[Any]:
    """The JSON values that stand one after the other in `text`.

    Raises:
        DataError: what stands somewhere is not JSON, names a key twice, or is a number beyond those of a computer.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_mapping, parse_float=_number)
    position = _SPACE.match(text).end()  # type: ignore[union-attr]
    while position < len(text):
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}: cannot be read (line {error.lineno}: {error.msg}, column {error.colno})") from None
        except (ValueError, RecursionError) as error:  # ValueError: also an integer of 5,000 digits
            line = text.count("\n", 0, position) + 1
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise DataError(f"{name}: cannot be read (the JSON from line {line} on: {reason})") from None
        yield value
        position = _SPACE.match(text, end).end()  # type: ignore[union-attr]


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])


def _bytes(path: Path, name: str) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix.lower() == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{name}: cannot be read ({reason})") from None


def _json(text: str, name: str) -> list[Any]:
    """The rows of JSON lines, of an array of objects, of `{"data": [...]}`, or the one row of an object."""
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
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return mapping


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large for a float; write it as a string")
    return number


def _csv(text: str, name: str) -> Iterator[Any]:
    """Mappings of text; in the place of a line without exactly one field per column, the error that it is."""
    lines = _fields(text, name)
    columns = next(lines, [])
    if twice := next((column for column in columns if columns.count(column) > 1), None):
        raise DataError(f"{name}: has two columns {twice!r}; rename one")
    if "prompt" not in columns and len(columns) == 1 and re.search("[;\t|]", columns[0]):
        raise DataError(f"{name}: its first line is {columns[0]!r:.100}; columns must be separated by commas")
    for fields in lines:
        whole = len(fields) == len(columns)
        yield dict(zip(columns, fields, strict=True)) if whole else DataError(f"has {len(fields)} fields for {len(columns)} columns")


def _fields(text: str, name: str) -> Iterator[list[str]]:
    """The fields of each line that is not empty."""
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
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: cannot be read ({type(error).__name__}: {reason})") from None


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _without_none(value) for name, value in row.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    if isinstance(value, list) and isinstance(next((one for one in value if one is not None), None), (Mapping, list)):
        return [_without_none(one) for one in value]
    return value
