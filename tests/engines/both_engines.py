"""One model on the vLLM engine and on the transformers engine, which must answer alike."""

from pathlib import Path
from types import SimpleNamespace

from vllm_child import SETTINGS, TEXT

from estune import ESConfig
from estune.common.types import Member, Unperturbed
from estune.engines.device import engine_dtype
from estune.engines.transformers import open_engine
from estune.engines.vllm import VLLMEngine
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

BASE = Unperturbed(0)

MEMBERS = [
    BASE,
    Member(1, 1, 0.02, "iid", 0),
    Member(1, -1, 0.02, "iid", 0),
    Member(2**64 - 1, 1, 0.05, "correlated", 0),
]


def both_engines(folder: Path, **settings) -> SimpleNamespace:
    """A model, its θ, and both engines."""
    checkpoint = open_checkpoint(folder)
    plan = layout(checkpoint)
    config = ESConfig(**SETTINGS | settings)
    reference = open_engine(folder, plan, config, "cpu", engine_dtype(config))
    theta = Theta.load(checkpoint, plan.in_model, share=True)
    engine = VLLMEngine(checkpoint, plan, config, "cpu", engine_dtype(config))
    return SimpleNamespace(
        folder=folder,
        checkpoint=checkpoint,
        layout=plan,
        theta=theta,
        engine=engine,
        reference=reference,
    )


def load_both(
    there: SimpleNamespace, member: Member | Unperturbed, theta: Theta | None = None
) -> None:
    for engine in (there.engine, there.reference):
        engine.load(theta or there.theta, member)


def same_answers(there: SimpleNamespace, prompts=TEXT, budget=12):
    """What both engines answer, having checked that it is the same."""
    answers = there.engine.generate(prompts, max_completion_length=budget)
    assert answers == there.reference.generate(prompts, max_completion_length=budget)
    return answers
