"""Errors that a model's folder or object raises reach the user as one line."""

import json

import pytest
import torch

from estune import ESConfig, ESTrainer
from estune.engines.transformers import load_model
from estune.errors import ModelError


def test_adapters_are_refused_with_the_way_to_merge_them(tmp_path, refused, mini):
    for name, files in {"alone": [], "beside": mini.iterdir()}.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file.name).symlink_to(file)
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": "elsewhere"})
        )
        line = refused("train", "--model_name_or_path", folder, "--task", "conciseness")
        assert "merge_and_unload" in line
        assert ("remove adapter_config.json" in line) == (name == "beside")


def test_a_model_object_with_an_adapter_is_refused(tmp_path):
    from types import SimpleNamespace

    wrapped = SimpleNamespace(peft_config={}, save_pretrained=pytest.fail)
    with pytest.raises(ModelError, match="give model.merge_and_unload"):
        ESTrainer(
            wrapped,
            lambda completions, **columns: [0.0],
            ESConfig(output_dir=str(tmp_path)),
            [{"prompt": "cat"}],
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.6, "do_sample": False},
        {"top_p": 0.9, "do_sample": False},
        {"num_return_sequences": 4, "num_beams": 1},
    ],
)
def test_a_model_object_whose_generation_config_cannot_be_saved_is_tuned_all_the_same(
    mini, tmp_path, settings
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(mini)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    own = model.generation_config
    config = ESConfig(
        output_dir=str(tmp_path / "out"),
        population_size=2,
        max_steps=1,
        engine="fake",
        reward_workers=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(mini)
    trainer = ESTrainer(
        model,
        lambda completions, **columns: [1.0] * len(completions),
        config,
        [{"prompt": "cat"}],
        None,
        tokenizer,
    )
    assert trainer.train().global_step == 1
    assert model.generation_config is own
    assert (
        json.loads((tmp_path / "out/base/generation_config.json").read_text())["eos_token_id"] == 1
    )


def test_an_attention_that_is_not_installed_is_one_line(mini):
    config = ESConfig(model_init_kwargs={"attn_implementation": "flash_attention_2"})
    with pytest.raises(ModelError, match="transformers cannot load this model .*FlashAttention"):
        load_model(mini, config, "cpu", torch.float32)
