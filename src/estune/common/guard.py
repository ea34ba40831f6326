"""Turn exceptions of other libraries into estune's own errors, which are one line.

Libraries raise many types of exceptions, and each version may add more. So any exception is caught.

    with guarded(ModelError, f"{folder}: transformers cannot load this model"):
        AutoModelForCausalLM.from_pretrained(folder)
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from estune.errors import EstuneError

# Disk errors pass through, because the command line has one message for them in all commands.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def guarded(kind: type[EstuneError], what: str, advice: str = "") -> Iterator[None]:
    """Turn any exception in the block into an error of type `kind`: "what (reason); advice".

    The original exception is the cause of the new one; --debug shows it. estune's own errors and
    disk errors pass unchanged.
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
    """Return the error's message on one line; after the type's name if it alone is unclear."""
    message = " ".join(str(error).split())[:length].rstrip(" .")
    name = type(error).__name__
    if isinstance(error, (OSError, RuntimeError, ValueError)) and len(message.split()) > 3:
        return message
    return f"{name}: {message}" if message else name
