"""transformers, without a library that it brings along for something else.

Where scikit-learn is installed, transformers' models import it, and so pandas and pyarrow, for one curve of assisted decoding, which
ES has no use for: 60 MB in each process, and a second before anything shows. Here that curve is imported when it is asked for.
"""

import importlib
import threading
from typing import Any

_ASSISTED = "transformers.generation.candidate_generator"
_lock = threading.Lock()


def transformers() -> Any:
    """The module, whose models can be asked for."""
    with _lock:
        utils: Any = importlib.import_module("transformers.utils")
        if hasattr(utils, "is_sklearn_available"):
            _import_without_sklearn(utils)
    return importlib.import_module("transformers")


def _import_without_sklearn(utils: Any) -> None:
    available = utils.is_sklearn_available
    utils.is_sklearn_available = _no
    try:
        assisted: Any = importlib.import_module(_ASSISTED)
    except (
        ModuleNotFoundError
    ):  # another version, which has it elsewhere: then it is imported as ever
        return
    finally:
        utils.is_sklearn_available = available
    if (
        getattr(assisted, "is_sklearn_available", None) is _no
    ):  # imported just now: assisted decoding stays as it was for whoever wants it
        assisted.is_sklearn_available, assisted.roc_curve = available, _roc_curve


def _no() -> bool:
    return False


def _roc_curve(*arguments: Any, **options: Any) -> Any:
    return importlib.import_module("sklearn.metrics").roc_curve(*arguments, **options)
