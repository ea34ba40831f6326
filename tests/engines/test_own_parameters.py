"""The engine writes into the model's own parameters, and proves at the start where they are."""

from dataclasses import replace

import pytest
import torch
from helpers import make_family, transformers_engine

from estune.common.types import Member
from estune.engines.own_parameters import OwnParameters
from estune.errors import EngineError, ModelError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.fused import Fragment, Strided
from estune.theta.parameters import Layout, layout
from estune.theta.theta import Theta


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("moe"))


def test_an_expert_is_written_into_the_fused_parameter_without_a_copy(moe):
    checkpoint = open_checkpoint(moe)
    engine = transformers_engine(moe)
    name = "model.layers.1.mlp.experts.11.up_proj.weight"
    fused = dict(engine._model.named_parameters())["model.layers.1.mlp.experts.gate_up_proj"]
    before = fused.detach().clone()
    engine.load(Theta.load(checkpoint, [name]), Member(3, 1, 0.1, "iid", 0))
    held = engine.read(name)
    assert held.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
    assert not torch.equal(fused[11, 96:], before[11, 96:])
    assert torch.equal(fused[11, :96], before[11, :96])
    assert torch.equal(fused[:11], before[:11])


def test_a_wrong_map_is_noticed_when_the_engine_opens(moe):
    from estune.config import ESConfig
    from estune.engines.transformers import open_engine

    found = layout(open_checkpoint(moe))
    experts = [name for name in found.fused if name.endswith("3.up_proj.weight")]
    wrong = found.fused | dict.fromkeys(experts, found.fused[experts[-1]])
    with pytest.raises(EngineError, match=r"experts\.3\.up_proj\.weight where its converters say"):
        open_engine(moe, replace(found, fused=wrong), ESConfig(), "cpu", torch.float32)


def test_a_parameter_that_the_model_keeps_in_fp32_is_written_in_fp32(tmp_path):
    folder = make_family(tmp_path / "base", "deepseek_v3")
    engine = transformers_engine(folder, dtype="bfloat16")
    router = "model.layers.1.mlp.gate.weight"
    expert = "model.layers.1.mlp.experts.3.up_proj.weight"
    assert engine.read(expert).dtype == torch.bfloat16
    theta = Theta.load(open_checkpoint(folder), [router, expert])
    member = Member(3, 1, 0.1, "iid", 0)
    engine.load(theta, member)
    exact = dict(theta.perturbed(member, lambda name: torch.empty_like(theta.tensors[name])))
    for name in (router, expert):
        held = engine.read(name)
        assert torch.equal(held, exact[name].to(held.dtype))
    kept = {name for name, each in engine._model.named_parameters() if each.dtype == torch.float32}
    assert engine.read(router).dtype == (torch.float32 if router in kept else torch.bfloat16)


def two_parameters(dtypes):
    """A model of two parameters, and a tensor of the files whose rows lie in both."""
    model = torch.nn.Module()
    for name, dtype in zip("qk", dtypes, strict=True):
        parameter = torch.nn.Parameter(torch.zeros(2, 3, dtype=dtype), requires_grad=False)
        model.register_parameter(name, parameter)
    half = Strided((2, 3), (3, 1), 0)
    fragments = (Fragment("q", half, half), Fragment("k", half, Strided((2, 3), (3, 1), 6)))
    return model, OwnParameters(model, Layout({"qk": "q"}, {}, {"qk": fragments}))


def test_a_tensor_of_the_files_that_is_split_is_written_into_all_its_parameters():
    model, parameters = two_parameters([torch.float32, torch.float32])
    theta = Theta({"qk": torch.randn(4, 3)})
    member = Member(3, 1, 0.1, "iid", 0)
    parameters.load(theta, member)
    ((_, exact),) = theta.perturbed(member, lambda name: torch.empty(4, 3))
    assert torch.equal(torch.cat([model.q, model.k]), exact)
    assert torch.equal(parameters.read("qk").view(4, 3), exact)


def test_a_tensor_that_is_split_over_two_dtypes_is_refused():
    with pytest.raises(ModelError, match="choose float32 as dtype"):
        two_parameters([torch.float32, torch.bfloat16])


def test_a_parameter_that_the_model_lacks_is_named():
    with pytest.raises(ModelError, match="has no parameter v, which the model's files hold"):
        OwnParameters(torch.nn.Module(), Layout({"v": "v"}, {}))
