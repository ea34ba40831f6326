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
            raise LostFolderError(
                f"{self.path}: {self._fate()}; the run stops before it writes there again"
            )

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except OSError:
            return False

    def _fate(self) -> str:
        """What happened, as far as the system tells."""
        now = self._now()
        if now:
            return (
                f"was moved to {now} while the run was going on, and the run can be resumed there"
            )
        return f"was {'replaced' if os.path.lexists(self.path) else 'deleted'} while the run was going on"

    def _now(self) -> str | None:
        """Where the file or folder lies now; None where it is gone, or only Linux could tell."""
        try:
            path = os.readlink(f"/proc/self/fd/{self.descriptor}")
            return path if os.path.samestat(os.stat(path), os.fstat(self.descriptor)) else None
        except OSError:
            return None
