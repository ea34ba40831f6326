"""Fine-tune all parameters of an LLM by evolution strategies, with forward passes only."""

import importlib
from typing import TYPE_CHECKING, Any

from estune.config import ESConfig
from estune.errors import EstuneError

if TYPE_CHECKING:
    from estune.run.mixture import Mixture, Part
    from estune.trainer import ESTrainer

__all__ = ["ESConfig", "ESTrainer", "EstuneError", "Mixture", "Part", "__version__"]
__version__ = "0.1.0"

_MODULES = {
    "ESTrainer": "estune.trainer",
    "Mixture": "estune.run.mixture",
    "Part": "estune.run.mixture",
}


def __getattr__(name: str) -> Any:
    """Import the trainer and mixtures, and torch with them, only when they are used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'estune' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
