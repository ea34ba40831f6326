"""The guard that stands at every seam to another library, so that its exceptions reach the user as one line of ours.

Libraries raise whatever they like, and more kinds with every version, so a list of types to catch is never complete.

    with guarded(ModelError, f"{folder}: transformers cannot load this model"):
        AutoModelForCausalLM.from_pretrained(folder)
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from estune.errors import EstuneError

_FULL = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
)  # the disk's state, which every command reports alike


@contextmanager
def guarded(kind: type[EstuneError], what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever a library raises in here into `kind`: what failed, why, and what to do about it.

    The exception stays as the cause, which --debug shows. Errors of our own and a full disk pass as they are.
    """
    try:
        yield
    except EstuneError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        raise kind(f"{what} ({reason(error)}){advice and '; '}{advice}") from error


def reason(error: BaseException, length: int = 240) -> str:
    """The error as part of a line: its type where its own words do not explain themselves."""
    said = " ".join(str(error).split())[:length].rstrip(" .")
    name = type(error).__name__
    if isinstance(error, (OSError, RuntimeError, ValueError)) and len(said.split()) > 3:
        return said
    return f"{name}: {said}" if said else name
