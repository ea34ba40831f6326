"""transformers, without a library that it brings along for something else.

Where scikit-learn is installed, transformers' models import it, and so pandas and pyarrow, for one curve of assisted decoding, which
ES has no use for: 60 MB in each process, and a second before anything shows. Here that curve is imported when it is asked for.
"""

import importlib
from typing import Any


def transformers() -> Any:
    """The module, whose models can be asked for."""
    utils: Any = importlib.import_module("transformers.utils")
    available = utils.is_sklearn_available
    utils.is_sklearn_available = _no
    try:
        assisted: Any = importlib.import_module("transformers.generation.candidate_generator")
    finally:
        utils.is_sklearn_available = available
    if assisted.is_sklearn_available is _no:  # imported just now: assisted decoding stays as it was for whoever wants it
        assisted.is_sklearn_available, assisted.roc_curve = available, _roc_curve
    return importlib.import_module("transformers")


def _no() -> bool:
    return False


def _roc_curve(*arguments: Any, **options: Any) -> Any:
    return importlib.import_module("sklearn.metrics").roc_curve(*arguments, **options)
