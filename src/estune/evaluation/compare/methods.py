"""The methods that can be compared: their settings, and the learning rates that are tried.

The settings of RL methods are from TRL's documentation
(https://huggingface.co/docs/trl/paper_index).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from estune.common.name_hints import nearest
from estune.errors import ConfigError

LearningRate = float | str | None  # a number, "auto", or None for σ/2

_RL_GRID = (1e-5, 2e-5, 5e-5)  # for AdamW on a whole model of about 100 million parameters
_NO_PPO = "TRL's PPOTrainer scored with a reward model, not functions, and was removed from TRL"
INSTALL = "pip install 'estune[rl]'"


@dataclass(frozen=True)
class Method:
    """A method. `settings` are estune's if its kind is "es", and TRL's GRPOConfig's if "rl"."""

    name: str
    kind: Literal["es", "rl"]
    summary: str
    settings: Mapping[str, Any]
    learning_rates: tuple[LearningRate, ...]

    def alpha(self, learning_rate: LearningRate, sigma: float) -> LearningRate:
        """Return estune's learning_rate for this method's; MeZO's does not include 1/σ."""
        if self.name == "mezo" and isinstance(learning_rate, float):
            return learning_rate / sigma
        return learning_rate


_PAIR = {
    "population_size": 2,
    "antithetic": True,
    "reward_shaping": "none",
    "pass_k": None,
    "prompt_shaping": None,
    "weight_decay": 0.0,
}
_METHODS = (
    Method("es", "es", "the config's own ES, with learning_rate: auto", {}, ("auto",)),
    Method("es-paper", "es", "the config's own ES, with α = σ/2, the paper's", {}, (None,)),
    Method("mezo", "es", "one antithetic pair per step, raw rewards", _PAIR, (1e-7, 1e-6, 1e-5)),
    Method("grpo", "rl", "TRL's GRPO", {"loss_type": "grpo", "beta": 0.001}, _RL_GRID),
    Method(
        "dr_grpo",
        "rl",
        "TRL's Dr. GRPO",
        {"loss_type": "dr_grpo", "scale_rewards": False, "beta": 0.0},
        _RL_GRID,
    ),
    Method(
        "dapo",
        "rl",
        "TRL's DAPO, without resampling of prompts",
        {
            "loss_type": "dapo",
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "beta": 0.0,
            "mask_truncated_completions": True,
        },
        _RL_GRID,
    ),
)
METHODS = {method.name: method for method in _METHODS}
DEFAULT = tuple(METHODS)


def chosen(names: Sequence[str]) -> list[Method]:
    """Return the methods that `names` lists, without duplicates.

    One word may list several, separated by commas: es,grpo.

    Raises:
        ConfigError: a name is unknown, TRL has no such method, or TRL is not installed.
    """
    listed = list(dict.fromkeys(name for word in names for name in word.split(",") if name))
    if not listed:
        raise ConfigError(f"methods: name at least one of {', '.join(METHODS)}")
    found = [_method(name) for name in listed]
    if rl := next(
        (method for method in found if method.kind == "rl" and find_spec("trl") is None), None
    ):
        raise ConfigError(f"methods: {rl.name} needs TRL, which is not installed: {INSTALL}")
    return found


def grids(
    methods: Sequence[Method], given: Sequence[str] | None
) -> dict[str, tuple[LearningRate, ...]]:
    """Return the learning rates to try with each method.

    Args:
        given: what the user gave instead of the methods' own: "1e-6,1e-5" for all RL methods,
            "mezo=1e-6,1e-5" for one method.

    Raises:
        ConfigError: one of `given` is invalid.
    """
    found: dict[str, tuple[LearningRate, ...]] = {
        method.name: method.learning_rates for method in methods
    }
    plain = [word for word in given or [] if "=" not in word]
    if plain:
        rates = _rates(",".join(plain))
        found |= {method.name: rates for method in methods if method.kind == "rl"}
    for name, _, values in (word.partition("=") for word in given or [] if "=" in word):
        if name not in found:
            raise ConfigError(
                f"learning_rates: {name!r} is not one of the methods {', '.join(found)}"
            )
        found[name] = _rates(values)
    return found


def _method(name: str) -> Method:
    if name == "ppo":
        raise ConfigError(f"methods: ppo: {_NO_PPO}; take grpo, dr_grpo or dapo")
    if name not in METHODS:
        raise ConfigError(f"methods: unknown method {name!r}{nearest(name, list(METHODS))}")
    return METHODS[name]


def _rates(text: str) -> tuple[LearningRate, ...]:
    rates = tuple(dict.fromkeys(_rate(word) for word in text.split(",") if word))
    if not rates:
        raise ConfigError("learning_rates: give at least one number")
    return rates


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        rate = -1.0
    if not 0 < rate < float("inf"):
        raise ConfigError(
            f"learning_rates: must be numbers above 0, or METHOD=numbers; got {word!r}"
        )
    return rate
