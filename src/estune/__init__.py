"""Fine-tune all parameters of an LLM by evolution strategies, with forward passes only."""

from typing import TYPE_CHECKING, Any

from estune.config import ESConfig
from estune.errors import EstuneError

if TYPE_CHECKING:
    from estune.trainer import ESTrainer

__all__ = ["ESConfig", "ESTrainer", "EstuneError", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the trainer, and torch with it, only when it is asked for."""
    if name == "ESTrainer":
        from estune.trainer import ESTrainer

        return ESTrainer
    raise AttributeError(f"module 'estune' has no attribute {name!r}")
