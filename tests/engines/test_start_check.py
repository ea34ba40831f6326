"""The check at the start: usual models pass, others are refused or complete prompts singly."""

import logging

import pytest
import torch
from helpers import make_model

from estune import ESConfig
from estune.common.types import Unperturbed
from estune.engines import repeatability
from estune.engines.transformers import TransformersEngine, open_engine
from estune.errors import EngineError, ModelError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout
from estune.theta.theta import Theta

CENTER = Unperturbed(0)
PROMPTS = ["cat", "where is the red dog x y z one two three"]


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.WARNING, "estune")


def place(folder, dtype="float32") -> tuple[TransformersEngine, Theta]:
    checkpoint = open_checkpoint(folder)
    known = layout(checkpoint)
    config = ESConfig(dtype=dtype)
    engine = open_engine(folder, known, config, "cpu", getattr(torch, dtype))
    return engine, Theta.load(checkpoint, known.in_model)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_ordinary_model_passes_without_a_word(tiny, dtype, caplog):
    engine, theta = place(tiny, dtype)
    engine.check(theta, CENTER)
    assert engine._loop.most == 64
    assert not caplog.records


def test_it_is_asked_once(tiny, monkeypatch):
    engine, theta = place(tiny)
    asked, probe = [], engine._probe
    monkeypatch.setattr(
        engine, "_probe", lambda prompts: asked.append(len(prompts)) or probe(prompts)
    )
    for _ in range(3):
        engine.check(theta, CENTER)
    assert asked == [1, 1, 2]


def test_a_model_with_a_tiny_context_and_vocabulary_is_checked_too(tmp_path):
    engine, theta = place(make_model(tmp_path, max_position_embeddings=3, vocab_size=5))
    engine.check(theta, CENTER)


def test_a_model_that_changes_its_weights_as_it_generates_is_refused(tiny):
    engine, theta = place(tiny)
    head = engine._model.model.layers[1].mlp.down_proj

    def halved(module, inputs):
        module.weight.div_(2)

    head.register_forward_pre_hook(halved)
    with pytest.raises(ModelError, match="changes its own weights as it generates"):
        engine.check(theta, CENTER)


def test_a_model_that_remembers_what_it_was_asked_is_refused(tiny):
    engine, theta = place(tiny)
    seen = []

    def grown(module, inputs, output):
        seen.append(1)
        return output + len(seen) * torch.linspace(-1, 1, output.shape[-1])

    engine._model.model.layers[0].mlp.register_forward_hook(grown)
    with pytest.raises(ModelError, match="changes its completion of the same prompt"):
        engine.check(theta, CENTER)


def test_other_roundings_each_time_are_spoken_of(tiny, caplog):
    engine, theta = place(tiny)
    seen = []

    def shaken(module, inputs, output):
        seen.append(1)
        return output * (1 + 1e-6 * len(seen))

    engine._model.model.layers[0].mlp.register_forward_hook(shaken)
    engine.check(theta, CENTER)
    assert "other roundings each time" in caplog.text


def test_a_model_that_mixes_the_rows_of_a_batch_is_asked_one_prompt_at_a_time(tiny, caplog):
    engine, theta = place(tiny)
    wanted = [engine.generate([prompt], max_completion_length=6)[0] for prompt in PROMPTS]
    mlp = engine._model.model.layers[0].mlp
    mlp.register_forward_hook(
        lambda module, inputs, output: output + 3 * (output.mean(0, keepdim=True) - output)
    )
    engine.check(theta, CENTER)
    assert "completed one at a time" in caplog.text
    assert engine.generate(PROMPTS, max_completion_length=6) == wanted


def test_whatever_a_model_raises_there_is_an_error_of_the_engine(tiny):
    engine, theta = place(tiny)

    def broken(module, inputs):
        raise KeyError("no such head")

    engine._model.model.layers[0].register_forward_pre_hook(broken)
    with pytest.raises(
        EngineError, match="failed to complete a prompt of a few tokens .KeyError: 'no such head'"
    ):
        engine.check(theta, CENTER)


def test_a_rwkv_of_many_layers_answers_alike_each_time_and_alone(tmp_path, caplog):
    from helpers import make_tokenizer
    from transformers import RwkvConfig, RwkvForCausalLM

    torch.manual_seed(1)
    config = RwkvConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=12,
        context_length=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = RwkvForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(4)
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    engine, theta = place(tmp_path)
    found = []
    for _ in range(3):
        engine.load(theta, CENTER)
        engine.check(theta, CENTER)
        found.append(engine.generate(PROMPTS, max_completion_length=6))
    assert found[0] == found[1] == found[2]
    assert found[0] == [engine.generate([prompt], max_completion_length=6)[0] for prompt in PROMPTS]
    assert "completed one at a time" in caplog.text


def test_answers_differ_by_their_logits_as_long_as_the_tokens_are_the_same():
    flat, bent = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-1.0, 0.5, 1.0])
    same = repeatability.Probe([flat, flat], [2, 2])
    assert repeatability.difference(same, same) == 0
    assert repeatability.difference(
        same, repeatability.Probe([flat, bent], [2, 2])
    ) == pytest.approx(0.5 / 3**0.5)
    assert (
        repeatability.difference(
            repeatability.Probe([flat, flat], [1, 2]), repeatability.Probe([flat, bent], [2, 2])
        )
        == 0
    )
    assert (
        repeatability.difference(same, repeatability.Probe([flat * torch.nan, flat], [2, 2])) == 0
    )
