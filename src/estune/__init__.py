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


_IMPORTED_LATE = {
    "ESTrainer": "estune.trainer",
    "Mixture": "estune.run.mixture",
    "Part": "estune.run.mixture",
}


def __getattr__(name: str) -> Any:
    """Import the trainer or a mixture, and torch with it, when it is first used."""
    if name in _IMPORTED_LATE:
        return getattr(importlib.import_module(_IMPORTED_LATE[name]), name)
    raise AttributeError(f"module 'estune' has no attribute {name!r}")
