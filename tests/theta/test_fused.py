"""Tensors that transformers fuses, splits or transposes on loading keep their files' names."""

import math
import re

import pytest
import torch
from helpers import FAMILIES, make_family, make_model
from safetensors.torch import load_file, save_file

from estune.errors import ModelError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.fused import Loading
from estune.theta.parameters import empty_model, layout


def plan(folder):
    return layout(open_checkpoint(folder))


def rewrite(folder, change):
    stored = load_file(folder / "model.safetensors")
    save_file(change(stored), folder / "model.safetensors", metadata={"format": "pt"})


def loaded(folder):
    """The parameters of the model that transformers loads."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: each.data for name, each in model.named_parameters(remove_duplicate=False)}


def read_back(fragments, parameters, shape):
    out = torch.full(shape, math.nan)
    for fragment in fragments:
        part = out if fragment.part is None else fragment.part.of(out)
        part.copy_(fragment.place.of(parameters[fragment.inside]))
    return out


@pytest.mark.parametrize("family", ["qwen3_moe", "hrm_text", "olmo_hybrid"])
def test_every_tensor_of_the_files_is_found_in_the_model_that_transformers_loads(tmp_path, family):
    """Qwen3 has twelve experts, and sorting their names puts 10 before 2."""
    folder = make_family(tmp_path / "base", family)
    parameters, found = loaded(folder), plan(folder)
    stored = load_file(folder / "model.safetensors")
    assert set(found.in_model) == set(stored)
    assert found.fused
    for name, fragments in found.fused.items():
        assert torch.equal(read_back(fragments, parameters, stored[name].shape), stored[name]), name


def test_experts_that_the_model_has_too_few_files_for_are_refused_in_one_line(tmp_path):
    folder = make_family(tmp_path / "base")
    missing = "model.layers.1.mlp.experts.7.up_proj.weight"
    rewrite(folder, lambda stored: {name: stored[name] for name in stored if name != missing})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts\.0\.\w+_proj") as refusal:
        plan(folder)
    assert "\n" not in str(refusal.value)


def test_layers_of_one_kind_are_asked_about_once_and_with_few_experts(tmp_path, monkeypatch):
    asked = []
    converted = Loading._converted
    monkeypatch.setattr(
        Loading, "_converted", lambda self, group: asked.append(group) or converted(self, group)
    )
    found = plan(make_family(tmp_path / "base", num_hidden_layers=4))
    assert [len(group.names) for group in asked] == [4, 8]  # down_proj; gate_proj and up_proj
    assert {fragment.inside for (fragment,) in found.fused.values()} == {
        f"model.layers.{layer}.mlp.experts.{name}"
        for layer in range(4)
        for name in ("gate_up_proj", "down_proj")
    }


def test_few_experts_and_all_of_them_give_the_same_answer(tmp_path, monkeypatch):
    folder = make_family(tmp_path / "base")
    few = plan(folder)
    monkeypatch.setattr(Loading, "_ask_few", lambda self, group: None)
    assert plan(folder) == few


def test_buffers_and_layers_that_the_model_ignores_are_no_parameters(tmp_path):
    folder = make_family(tmp_path / "base", "glm4_moe")
    extra = {}

    def with_another_layer(stored):
        for name in stored:
            if ".layers.1." in name:
                extra[name.replace(".layers.1.", ".layers.2.")] = stored[name] + 1
        return stored | extra

    rewrite(folder, with_another_layer)
    found = plan(folder)
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in found.fused
    left = load_file(folder / "model.safetensors").keys() - found.in_model.keys()
    assert left == {*extra, "model.layers.1.mlp.gate.e_score_correction_bias"}


def test_transposed_files_have_strided_views(tmp_path):
    """Qwen3-VL's experts: (experts, in, out) in the files, (experts, out, in) in memory."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = FAMILIES["usual"] | FAMILIES["qwen3_moe"]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
    vision = {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = AutoConfig.for_model(
        "qwen3_vl_moe", text_config=text | {"rope_parameters": rope}, vision_config=vision
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "base")
    rewrite(
        tmp_path / "base",
        lambda stored: {
            name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor
            for name, tensor in stored.items()
        },
    )
    base = open_checkpoint(tmp_path / "base")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype=torch.float32)
    parameters = {name: each.data for name, each in model.named_parameters()}
    loading = Loading(model)
    _, groups = loading.sort({name: stored.shape for name, stored in base.tensors.items()})
    places = loading.places(groups)
    for name, fragments in places.items():
        stored = base.read(name)
        assert torch.equal(read_back(fragments, parameters, stored.shape), stored), name
    experts = places["model.language_model.layers.0.mlp.experts.gate_up_proj"]
    assert [fragment.place.strides for fragment in experts] == [(24576, 1, 128)]


# What a converter may do


def converting(monkeypatch, folder, sources, target, *operations):
    """Let transformers convert these tensors of a Llama, and return what `Loading` makes of it."""
    from transformers import AutoConfig, conversion_mapping
    from transformers.core_model_loading import WeightConverter

    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # fills the cache
    known = dict(conversion_mapping._checkpoint_conversion_mapping_cache)
    known["LlamaForCausalLM"] = [WeightConverter(sources, target, list(operations))]
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", known)
    model = empty_model(AutoConfig.from_pretrained(folder), trust_remote_code=False)
    return Loading(model), open_checkpoint(folder)


def operation(compute):
    """A conversion of one tensor that returns `compute` of it."""
    from transformers.core_model_loading import ConversionOps

    class Computed(ConversionOps):
        def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
            (tensors,) = input_dict.values()
            return {target_patterns[0]: compute(tensors[0])}

        @property
        def reverse_op(self):
            return self

    return Computed()


def asked(monkeypatch, folder, compute):
    loading, base = converting(
        monkeypatch, folder, "mlp.up_proj.weight", "mlp.up_proj.weight", operation(compute)
    )
    _, groups = loading.sort({name: stored.shape for name, stored in base.tensors.items()})
    return loading.places(groups)


@pytest.mark.parametrize(
    "compute",
    [
        lambda up: up * 2,
        lambda up: up.float() + 0.5,
        lambda up: up[:1].expand_as(up),
        lambda up: torch.cat([up[:-1], up[:1]]),
        lambda up: up.flatten()[torch.randperm(up.numel())].view(up.shape),
        lambda up: up[1:],
        lambda up: 1 / 0,
    ],
    ids=["scaled", "cast", "broadcast", "repeated", "scattered", "cut", "failing"],
)
def test_a_conversion_that_computes_or_leaves_out_values_is_refused(monkeypatch, tiny, compute):
    with pytest.raises(ModelError, match=r"^model.layers.0.mlp.up_proj.weight|scatters") as refusal:
        asked(monkeypatch, tiny, compute)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "compute",
    [
        lambda up: up.flip(0).flip(0),
        lambda up: up.view(2, 24, 32).transpose(0, 1).reshape(48, 32),
        lambda up: up.view(48, 2, 16).transpose(1, 2).reshape(48, 32),
        lambda up: up.roll(16, 0),
    ],
    ids=["unchanged", "rows interleaved", "columns interleaved", "rolled"],
)
def test_a_permutation_is_read_element_by_element(monkeypatch, tmp_path, compute):
    folder = make_model(tmp_path / "base")
    for name, fragments in asked(monkeypatch, folder, compute).items():
        stored = open_checkpoint(folder).read(name)
        parameters = {name: compute(stored).contiguous()}
        assert re.fullmatch(r"model\.layers\.\d\.mlp\.up_proj\.weight", name)
        assert torch.equal(read_back(fragments, parameters, stored.shape), stored)
