"""`target_parameters` has words for the parts of a mixture of experts."""

import pytest
from helpers import make_family

from estune.errors import ConfigError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The layouts of four families whose files name their routers and shared experts differently.

    Their sizes do not matter here.
    """
    folder = tmp_path_factory.mktemp("families")
    families = ("mixtral", "qwen2_moe", "deepseek_v3", "granitemoeshared")
    return {name: layout(open_checkpoint(make_family(folder / name, name))) for name in families}


@pytest.mark.parametrize(
    ("family", "first"),
    [
        ("mixtral", "model.layers.0.block_sparse_moe.gate.weight"),
        ("qwen2_moe", "model.layers.0.mlp.gate.weight"),
        ("deepseek_v3", "model.layers.1.mlp.gate.weight"),
        ("granitemoeshared", "model.layers.0.block_sparse_moe.router.layer.weight"),
    ],
)
def test_routers_are_what_transformers_calls_them_and_all_else_is_without(found, family, first):
    one = found[family]
    routers = one.targets(["routers"])
    assert routers[0] == first
    assert len(routers) == (1 if family == "deepseek_v3" else 2)
    assert set(one.targets(["without_routers"])) == set(one.in_model) - set(routers)


def test_shared_experts_come_with_their_gates(found):
    names = found["qwen2_moe"].targets(["shared_experts"])
    assert len(names) == 2 * 4
    assert "model.layers.1.mlp.shared_expert_gate.weight" in names
    assert len(found["deepseek_v3"].targets(["shared_experts"])) == 3
    assert len(found["granitemoeshared"].targets(["shared_experts"])) == 2 * 2


def test_words_and_regular_expressions_add_up(found):
    names = found["mixtral"].targets(["routers", r"layers\.1\.self_attn"])
    assert len(names) == 2 + 4


@pytest.mark.parametrize("word", ["shared_experts", "routers", "without_routers"])
def test_a_word_for_what_the_model_lacks_is_refused(found, tiny, word):
    one = found["mixtral"] if word == "shared_experts" else layout(open_checkpoint(tiny))
    missing = word.removeprefix("without_").replace("_", " ")
    with pytest.raises(ConfigError, match=f"target_parameters: this model has no {missing}"):
        one.targets(["norm", word])
