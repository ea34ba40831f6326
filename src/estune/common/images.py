"""Images in rows: kept as files or bytes, and decoded when someone looks at them.

The convention is TRL's: a column `image` or `images`, and parts {"type": "image"} in messages. An
image is a PIL image, a path, the bytes of a file, or a mapping with `bytes` or `path`, as datasets
has them.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from estune.common.guard import reason
from estune.errors import DataError

COLUMNS = ("image", "images")
# Others may run programs to decode an image, as EPS does, or are no images, as PDF.
_FORMATS = {"PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"}


@dataclass(frozen=True)
class ImageFile:
    """An image by its content, which is compared instead of the object.

    digest: of the file's bytes, or of a PIL image's pixels, size and mode.
    """

    digest: str
    _path: Path | None = field(default=None, compare=False, repr=False)
    _data: bytes | None = field(default=None, compare=False, repr=False)
    _opened: Any = field(default=None, compare=False, repr=False)

    def open(self) -> Any:
        """Return the image as a PIL image, upright and decoded.

        Raises:
            DataError: the file is gone, or is no longer what it was.
        """
        if self._opened is not None:
            return self._opened
        return _decoded(self._bytes())

    def __reduce__(self) -> Any:
        """Pickle the content, since another machine may lack the file."""
        data = None if self._opened is not None else self._bytes()
        return ImageFile, (self.digest, None, data, self._opened)

    def _bytes(self) -> bytes:
        if self._data is not None:
            return self._data
        assert self._path is not None
        data = _read(self._path)
        if _hash(data) != self.digest:
            raise DataError(f"{self._path}: changed since the run began; restore it")
        return data


def image_file(value: Any, base: Path = Path()) -> ImageFile:
    """Return the image that `value` holds, decoded once to see that it is one.

    `base` is where relative paths begin.

    Raises:
        DataError: it is no image, cannot be read, or has too many pixels.
    """
    if isinstance(value, ImageFile):
        return value
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        _decoded(data)
        return ImageFile(_hash(data), None, data)
    if isinstance(value, (str, Path)):
        path = _path(value, base)
        data = _read(path)
        try:
            _decoded(data)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        return ImageFile(_hash(data), path)
    if hasattr(value, "tobytes") and hasattr(value, "mode"):
        return ImageFile(_pixel_digest(value), _opened=value)
    kind = type(value).__name__
    raise DataError(f"is a {kind}; give a PIL image, a path, or the bytes of an image file")


def is_placed(part: Any) -> bool:
    """Whether `part` of a message's content is an image with its content."""
    return isinstance(part, Mapping) and isinstance(part.get("image"), ImageFile)


def images_in(prompt: Any) -> list[ImageFile]:
    """Return the images in a conversation, in order."""
    messages = prompt if isinstance(prompt, list) else []
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image"] for part in parts if is_placed(part)]


def holds_images(row: Mapping[str, Any]) -> bool:
    """Whether the row's conversation, or a column for them, holds images."""
    column = [row.get("image"), *(row.get("images") or [])]
    return any(isinstance(one, ImageFile) for one in column) or bool(images_in(row.get("prompt")))


def opened(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with PIL images, as TRL gives them to reward functions."""
    found: dict[str, Any] = {}

    def open_all(value: Any) -> Any:
        if isinstance(value, ImageFile):
            if value.digest not in found:
                found[value.digest] = value.open()
            return found[value.digest]
        if isinstance(value, list):
            return [open_all(one) for one in value]
        if type(value) is dict:
            return {name: open_all(one) for name, one in value.items()}
        return value

    held = ("prompt", *COLUMNS)
    return [row | {name: open_all(row[name]) for name in held if name in row} for row in rows]


def _path(value: str | Path, base: Path) -> Path:
    text = str(value)
    if "://" in text:
        raise DataError(f"{text:.100} is an address; download it, and give the file")
    path = Path(text).expanduser()
    in_base = base / path
    return in_base if in_base.is_file() else path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DataError(f"{path} cannot be read ({reason(error)})") from None


def _decoded(data: bytes) -> Any:
    """Return the PIL image in `data`. Raises DataError."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DataError('images need pillow: pip install "estune[vision]"') from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            image = Image.open(io.BytesIO(data), formats=sorted(_FORMATS & set(Image.OPEN)))
            image.load()
            return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = Image.MAX_IMAGE_PIXELS
        raise DataError(f"has more than {most:,} pixels; scale it down") from None
    except Exception as error:  # decoders raise many kinds
        raise DataError(f"is no image that can be decoded ({reason(error)})") from None


def _pixel_digest(image: Any) -> str:
    try:
        about = repr((image.mode, image.size, image.getpalette())).encode()
        return _hash(about + image.tobytes())
    except Exception as error:
        raise DataError(f"is a picture that cannot be read ({reason(error)})") from None


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
