"""Detect that a run's folder or journal was renamed, deleted or replaced while the run goes on.

The run keeps the folder or file open. If the path leads to another one than the open one, the run
stops before it writes again.
"""

import os
import weakref
from pathlib import Path

from estune.errors import LostFolderError


class Anchor:
    """A file or folder that this process keeps open, and the path at which it was opened."""

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.path = path
        self.descriptor = os.open(path, flags)
        weakref.finalize(self, os.close, self.descriptor)

    def check(self) -> None:
        """Raise LostFolderError if the path no longer leads to the open file or folder."""
        if not self._is_in_place():
            raise LostFolderError(
                f"{self.path}: {self._fate()}; the run stops before it writes to this path again"
            )

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except OSError:
            return False

    def _fate(self) -> str:
        """Say what happened to the file or folder."""
        if now := self._current_path():
            return f"was moved to {now} during the run, which can be resumed from there"
        return f"was {'replaced' if os.path.lexists(self.path) else 'deleted'} during the run"

    def _current_path(self) -> str | None:
        """Return the present path of the open file; None if it was deleted or this is not Linux."""
        try:
            path = os.readlink(f"/proc/self/fd/{self.descriptor}")
            return path if os.path.samestat(os.stat(path), os.fstat(self.descriptor)) else None
        except OSError:
            return None
