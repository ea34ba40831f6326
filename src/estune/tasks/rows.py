"""Datasets: rows with a `prompt` and other columns, from the hub, a folder, a file, or Python."""

import inspect
import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from estune.common.guard import reason
from estune.common.images import COLUMNS, images_in
from estune.common.types import Row, is_token_ids
from estune.errors import DataError
from estune.tasks import data_files
from estune.tasks.image_rows import with_images
from estune.tasks.usable_rows import usable

logger = logging.getLogger(__name__)

Adapt = Callable[..., Iterable[Mapping[str, Any]]]
_MOST = 1_000_000  # rows of a stream, which may have no end
_NOT_SHOWN = ("tools", "chat_template_kwargs")  # TRL's trainers use these
_NOT_SUPPORTED = ("video", "videos", "audio", "audios")
_EXPANDED = set("*?[]#%:\n")  # characters that datasets takes for patterns and addresses


def rows_of(dataset: Any, what: str) -> list[Row]:
    """Return the rows of a `datasets.Dataset` or a list of mappings, checked.

    `what` names the data in errors.

    Raises:
        DataError: there are no rows, no column `prompt`, rows with different columns, or a prompt
            that is neither text, token ids nor messages.
    """
    rows = _listed(dataset, what)
    if strange := next((row for row in rows if not isinstance(row, Mapping)), None):
        wanted = "must be rows that map columns to values, such as one split of a dataset"
        raise DataError(f"{what}: {wanted}; it has {_shown(strange)}")
    _check_columns(rows, what)
    return [_checked_at(row, f"{what}: row {index}") for index, row in enumerate(rows)]


def load_rows(
    name: str,
    split: str,
    config: str | None = None,
    adapt: Adapt | None = None,
) -> list[Row]:
    """Return the rows of a split of the dataset that `dataset_name` names.

    `adapt` turns the dataset's columns into a task's. Rows that cannot be used are left out, with a
    warning.

    Raises:
        DataError: there is no such dataset or split, it cannot be read, or most rows are unusable.
    """
    try:
        with _quiet():
            loaded = usable(_load(name, split, config), _mapping, name)
        rows = _adapted(adapt, _same_columns(loaded), name)
        _check_columns(rows, name)
        return usable(rows, partial(_checked, base=_folder(name)), name)
    except DataError:
        raise
    except Exception as error:  # offline, gated, unknown split, damaged: all raise different types
        raise _not_loaded(name, split, error) from None


def has_split(name: str, split: str) -> bool:
    """Whether a dataset has this split; a single file has only 'train'."""
    path = Path(name).expanduser()
    if path.is_file() or (path / "dataset_info.json").is_file():
        return split == "train"
    if (path / "dataset_dict.json").is_file():
        return (path / split).is_dir()
    try:
        return split in _splits(name, path)
    except Exception:  # loading the training split will report it
        return False


def warn_of_columns_not_shown(rows: Sequence[Row]) -> None:
    """Warn of each column that other trainers show to the model, but estune does not."""
    for name in (*_NOT_SHOWN, *_NOT_SUPPORTED, *COLUMNS):
        held = (row for row in rows if row.get(name) is not None)
        if any(name not in COLUMNS or not images_in(row["prompt"]) for row in held):
            logger.warning(
                "the dataset's column %r is not shown to the model, only reward functions get it; "
                "put what the model should see into prompt",
                name,
            )


def _listed(dataset: Any, what: str) -> list[Any]:
    """Return all rows; a stream is read up to a limit, since it may be endless."""
    try:
        dataset = data_files.undecoded(dataset)
        endless = not hasattr(dataset, "__len__")
        rows = list(itertools.islice(dataset, _MOST + 1) if endless else dataset)
    except Exception as error:  # a stream may raise anything, and so may a picture
        raise DataError(f"{what}: its rows cannot be read ({reason(error)})") from error
    if endless and len(rows) > _MOST:
        raise DataError(
            f"{what}: a stream of more than {_MOST:,} rows, which are all kept in memory; "
            "give its first ones, for example with .take(n)"
        )
    return data_files.without_added_keys(rows) if getattr(dataset, "features", None) else rows


def _check_columns(rows: Sequence[Mapping[str, Any]], what: str) -> None:
    """Raise DataError without rows or a column `prompt`, or if the columns of rows differ."""
    if not rows:
        raise DataError(f"{what}: has no rows")
    for index, row in enumerate(rows):
        if other := [name for name in row if not isinstance(name, str)]:
            raise DataError(
                f"{what}: row {index}: a column's name must be text; it has {other[0]!r}",
            )
        if row.keys() != rows[0].keys():
            both = f"row {index} has the columns {_names(row)}, row 0 has {_names(rows[0])}"
            raise DataError(f"{what}: {both}")
    if "prompt" not in rows[0]:
        columns = _names(rows[0]) or "none"
        raise DataError(f"{what}: has no column 'prompt'; its columns are {columns}")


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(sorted(row))


def _checked_at(row: Mapping[str, Any], where: str) -> Row:
    try:
        return _checked(row)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _folder(name: str) -> Path:
    """Return the folder in which the paths of a dataset's images begin."""
    path = Path(name).expanduser()
    return path.parent if path.is_file() else path


def _checked(row: Mapping[str, Any], base: Path = Path()) -> Row:
    """Return a copy of the row with its prompt in plain Python and its images. Raises DataError."""
    prompt = row["prompt"]
    prompt = prompt.tolist() if hasattr(prompt, "tolist") else prompt  # of numpy, torch and others
    if isinstance(prompt, list):
        prompt = [each.item() if hasattr(each, "item") else each for each in prompt]
    if not _is_prompt(prompt):
        raise DataError(
            "the prompt is neither text nor a list of messages with role and content, "
            "nor one of token ids"
        )
    if not all(map(_is_unicode, _texts(prompt))):
        half = "half of a character, an unpaired surrogate such as \\ud800"
        raise DataError(f"the prompt holds {half}")
    return with_images(dict(row) | {"prompt": prompt}, base)


def _is_prompt(prompt: Any) -> bool:
    if isinstance(prompt, str) or is_token_ids(prompt):
        return True
    return isinstance(prompt, list) and len(prompt) > 0 and all(map(_is_message, prompt))


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and {"role", "content"} <= set(message)


def _texts(prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    contents = [message["content"] for message in prompt if isinstance(message, dict)]
    return [content for content in contents if isinstance(content, str)]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mapping(row: Any) -> Row:
    if isinstance(row, DataError):  # data_files.read puts it in a bad row's place
        raise row
    if not isinstance(row, Mapping):
        raise DataError(f"is not an object with columns, but {_shown(row)}")
    return dict(row)


def _shown(value: Any) -> str:
    return f"{' '.join(repr(value).split()):.60}"


def _same_columns(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with all columns; missing values become None."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in columns} for row in rows]


def _adapted(adapt: Adapt | None, rows: list[Row], name: str) -> list[Any]:
    if adapt is None or not rows:
        return rows
    named = {"what": name} if "what" in inspect.signature(adapt).parameters else {}
    return list(adapt(rows, **named))


def _load(name: str, split: str, config: str | None) -> list[Any]:
    """Return the rows; in place of an incomplete row of a file, a DataError."""
    from datasets import load_dataset

    path = Path(name).expanduser()
    if path.is_file():
        return data_files.read(path, name)
    if path.is_dir():
        with _plainly_named(path) as folder:
            return _of_folder(folder, name, split, config)
    if path.exists():
        raise DataError(f"{name}: is neither a file nor a folder")
    if name.startswith(("/", ".", "~")) or data_files.is_data_file(path):
        raise DataError(f"{name}: no such file or folder; give a file, a folder or a hub id")
    return data_files.without_added_keys(load_dataset(name, config, split=split))


def _of_folder(folder: Path, name: str, split: str, config: str | None) -> list[Any]:
    from datasets import load_dataset, load_from_disk

    if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
        saved: Any = load_from_disk(str(folder))
        return data_files.without_added_keys(saved[split] if isinstance(saved, dict) else saved)
    found = _data_files(folder, config)
    paths = [Path(path) for path in found.get(split, [])]
    if paths and all(map(data_files.is_data_file, paths)):
        names = {path: f"{name}/{path.relative_to(folder)}" for path in paths}
        return [row for path in paths for row in data_files.read(path, names[path])]
    return data_files.without_added_keys(load_dataset(str(folder), config, split=split))


def _data_files(folder: Path, config: str | None = None) -> dict[str, list[str]]:
    """Return split → files, as datasets finds them: by name, or from the folder's README.md."""
    from datasets import load_dataset_builder

    found = load_dataset_builder(str(folder), config).config.data_files or {}
    return {str(split): list(map(str, paths)) for split, paths in found.items()}


def _splits(name: str, path: Path) -> Iterable[str]:
    from datasets import get_dataset_split_names

    if not path.is_dir():
        return list(get_dataset_split_names(name))
    with _plainly_named(path) as folder:
        return _data_files(folder) or list(get_dataset_split_names(str(folder)))


@contextmanager
def _plainly_named(folder: Path) -> Iterator[Path]:
    """Yield the folder, or links to its files in another if datasets would misread its path."""
    whole = folder.resolve()
    if not _EXPANDED & set(str(whole)):
        yield whole
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(shutil.copytree(whole, Path(scratch) / "data", copy_function=os.symlink))


def _not_loaded(name: str, split: str, error: Exception) -> DataError:
    from datasets.exceptions import DatasetGenerationError

    cause = (error.__cause__ or error) if isinstance(error, DatasetGenerationError) else error
    if "corresponds to no data" in str(cause):
        return DataError(f"{name}: has no rows")
    why = f"the split {split!r} cannot be loaded ({reason(cause)})"
    return DataError(f"{name}: {why}; check the name and the split")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars and log lines of datasets; errors are reported by exceptions."""
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
