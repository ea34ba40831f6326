"""Turn exceptions of other libraries into one-line errors of ours.

Libraries raise many types of exceptions, and new ones with each version, so no list of types is
complete.

    with guarded(ModelError, f"{folder}: transformers cannot load this model"):
        AutoModelForCausalLM.from_pretrained(folder)
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from estune.errors import EstuneError

# Errors of the disk, which the command line reports in the same way for every command.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def guarded(kind: type[EstuneError], what: str, advice: str = "") -> Iterator[None]:
    """Turn any exception in the block into `kind`, with what failed, why, and what to do.

    The original is its cause, which --debug shows. Our own errors and disk errors pass unchanged.
    """
    try:
        yield
    except EstuneError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise kind(f"{what} ({reason(error)}){advice and '; '}{advice}") from error


def reason(error: BaseException, length: int = 240) -> str:
    """Return the error as part of a line: its message, after its type if it is unclear."""
    said = " ".join(str(error).split())[:length].rstrip(" .")
    name = type(error).__name__
    if isinstance(error, (OSError, RuntimeError, ValueError)) and len(said.split()) > 3:
        return said
    return f"{name}: {said}" if said else name
