"""Detect that a run's folder was renamed, deleted or replaced, before the run writes there again.

A path leads to whatever is there now, but an open file stays the same; so the two are compared.
"""

import os
import weakref
from pathlib import Path

from estune.errors import LostFolderError


class Anchor:
    """A file or folder that this process keeps open, and the path where it was found."""

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.path = path
        self.descriptor = os.open(path, flags)
        weakref.finalize(self, os.close, self.descriptor)

    def check(self) -> None:
        """Raise LostFolderError if the path no longer leads to it."""
        if not self._is_in_place():
            raise LostFolderError(
                f"{self.path}: {self._fate()}; the run stops before it writes there again"
            )

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except OSError:
            return False

    def _fate(self) -> str:
        """Describe what happened to it."""
        if now := self._current_path():
            return f"was moved to {now} during the run, which can be resumed there"
        return f"was {'replaced' if os.path.lexists(self.path) else 'deleted'} during the run"

    def _current_path(self) -> str | None:
        """Return its path now; None if it was deleted, or if this system is not Linux."""
        try:
            path = os.readlink(f"/proc/self/fd/{self.descriptor}")
            return path if os.path.samestat(os.stat(path), os.fstat(self.descriptor)) else None
        except OSError:
            return None
