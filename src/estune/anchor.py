"""A run notices that its folder was renamed, deleted or replaced under it, before it writes there again.

Paths lead to whatever lies there now; what a process has open stays what it was. Comparing the two tells.
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
        """Raises LostFolderError when the path leads elsewhere, or nowhere."""
        if not self._is_there():
            raise LostFolderError(f"{self.path}: was {self._fate()} while the run wrote there; it stops here, and can be resumed")

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except OSError:
            return False

    def _fate(self) -> str:
        """What happened, as far as the system tells."""
        if os.fstat(self.descriptor).st_nlink == 0:
            return "deleted"
        try:
            now = os.readlink(f"/proc/self/fd/{self.descriptor}")
        except OSError:  # only Linux has this
            return "moved or replaced"
        return f"moved to {now}" if os.path.lexists(now) else "deleted"
