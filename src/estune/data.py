"""Datasets: rows with a `prompt` and any further columns, from a hub id, a folder, a file, or what Python gives."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from estune.errors import DataError
from estune.member import is_token_ids

Row = dict[str, Any]
Adapt = Callable[[Iterable[Mapping[str, Any]]], Iterable[Mapping[str, Any]]]
_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


def rows_of(dataset: Any, what: str) -> list[Row]:
    """The rows of a `datasets.Dataset` or a list of mappings, checked; `what` names the data in errors.

    Raises:
        DataError: no rows, no `prompt` column, rows of unlike columns, or a prompt that is neither text, token ids nor messages.
    """
    rows = list(dataset)
    if not rows:
        raise DataError(f"{what}: has no rows")
    if strange := next((row for row in rows if not isinstance(row, Mapping)), None):
        raise DataError(f"{what}: must be rows that map columns to values, such as one split of a dataset; it has {strange!r:.60}")
    rows = [dict(row) for row in rows]
    columns = sorted(rows[0])
    if "prompt" not in rows[0]:
        raise DataError(f"{what}: has no column 'prompt'; its columns are {', '.join(columns) or 'none'}")
    for index, row in enumerate(rows):
        if sorted(row) != columns:
            raise DataError(f"{what}: row {index} has the columns {', '.join(sorted(row))}, row 0 has {', '.join(columns)}")
        if not _is_prompt(row["prompt"]):
            raise DataError(
                f"{what}: row {index}: the prompt is neither text nor a list of messages with role and content, nor one of token ids"
            )
    return rows


def load_rows(name: str, split: str, config: str | None = None, adapt: Adapt | None = None) -> list[Row]:
    """The rows of a split of a dataset named as `dataset_name` is; `adapt` makes a task's columns of the file's own.

    Raises:
        DataError: there is no such dataset or split, or it cannot be read.
    """
    from datasets.exceptions import DatasetGenerationError

    path = Path(name).expanduser()
    try:
        with _quiet():
            loaded = _load(name, path, split, config)
            return rows_of(adapt(loaded) if adapt else loaded, name)
    except DataError:
        raise
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise DataError(f"{name}: cannot be read ({type(cause).__name__}: {' '.join(str(cause).split())[:200]})") from None
    except Exception as error:  # offline, not found, gated, unknown split, damaged file: each its own kind
        reason = " ".join(str(error).split())[:240]
        if "corresponds to no data" in reason:
            raise DataError(f"{name}: has no rows") from None
        raise DataError(
            f"{name}: the split {split!r} cannot be loaded ({type(error).__name__}: {reason}); check the name and the split"
        ) from None


def has_split(name: str, split: str) -> bool:
    """Whether a local folder or file, or a hub dataset, has this split; a single file has only 'train'."""
    path = Path(name).expanduser()
    if path.is_file() or (path / "dataset_info.json").is_file():
        return split == "train"
    if (path / "dataset_dict.json").is_file():
        return (path / split).is_dir()
    from datasets import get_dataset_split_names

    try:
        return split in get_dataset_split_names(name)
    except Exception:  # whatever is wrong shows when the training split is loaded
        return False


def digest(rows: Sequence[Row]) -> str:
    """A fingerprint of the rows, to tell on resume that the data are the same."""
    text = "\n".join(json.dumps(row, sort_keys=True, default=str) for row in rows)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _load(name: str, path: Path, split: str, config: str | None) -> Iterable[Row]:
    from datasets import load_dataset, load_from_disk

    if path.is_file():
        if path.suffix not in _FORMATS:
            raise DataError(f"{name}: a data file must end in {', '.join(_FORMATS)}")
        if not path.stat().st_size:
            raise DataError(f"{name}: has no rows")
        return load_dataset(_FORMATS[path.suffix], data_files={split: str(path)}, split=split)  # type: ignore[no-any-return]
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        saved: Any = load_from_disk(str(path))
        return saved[split] if isinstance(saved, dict) else saved  # type: ignore[no-any-return]
    if (name.startswith(("/", ".", "~")) or path.suffix in _FORMATS) and not path.exists():
        raise DataError(f"{name}: no such file or folder; give a file, a folder or a hub id")
    return load_dataset(str(path) if path.is_dir() else name, config, split=split)  # type: ignore[no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and log lines of datasets: what is wrong is said once, by the error."""
    import datasets
    from datasets.utils import logging

    verbosity, bars = logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    if bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str) or is_token_ids(prompt):
        return True
    return (
        isinstance(prompt, list)
        and len(prompt) > 0
        and all(isinstance(message, dict) and {"role", "content"} <= set(message) for message in prompt)
    )
