"""Images through vLLM, on its CPU build and without torchvision."""

import pytest
from both_engines import MEMBERS
from seeing import make, seen_rows
from vllm_child import SETTINGS

from estune import ESConfig
from estune.engines.device import engine_dtype
from estune.engines.transformers import open_engine
from estune.tasks.rows import rows_of
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_members_see_the_same_on_both_engines_with_a_tuned_vision_tower(tmp_path):
    """The reference answers first: vLLM's backend changes transformers' classes."""
    from estune.engines.vllm import VLLMEngine

    folder = make("llava", tmp_path / "model", hidden_size=128, head_dim=32)
    checkpoint = open_checkpoint(folder)
    known = layout(checkpoint)
    own = {"vllm_max_model_length": 256, "vllm_model_impl": "transformers"}
    config = ESConfig(**SETTINGS | own)
    prompts = [row["prompt"] for row in rows_of(seen_rows(6), "rows")]
    theta = Theta.load(checkpoint, known.in_model, share=True)
    reference = open_engine(folder, known.in_model, config, "cpu", engine_dtype(config))
    wanted = []
    for member in MEMBERS[:3]:
        reference.load(theta, member)
        wanted.append(reference.generate(prompts, max_completion_length=8))
    engine = VLLMEngine(checkpoint, known, config, "cpu", engine_dtype(config))
    found = []
    for member in MEMBERS[:3]:
        engine.load(theta, member)
        found.append(engine.generate(prompts, max_completion_length=8))
    assert found == wanted
    assert found[0] != found[1]
