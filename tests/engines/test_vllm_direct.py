"""Writing members directly gives the same model as vLLM's reloading; without proof it reloads."""

from types import SimpleNamespace

import pytest
import torch
from both_engines import BASE, MEMBERS, both_engines, load_both, same_answers
from helpers import make_model
from vllm_child import SHAPE

from estune.common.types import Member
from estune.engines.vllm import VLLMEngine
from estune.engines.vllm_direct_writer import DirectWriter
from estune.engines.vllm_responses import responses
from estune.engines.vllm_worker import VariantLoader
from estune.errors import EngineError
from estune.theta.theta import Theta

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, SimpleNamespace]:
    """Both kept to the end: vLLM takes what engines share away with the first that goes."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: both_engines(make_model(folder / name, tied=name == "tied", **SHAPE))
        for name in ("tied", "untied")
    }


@pytest.fixture(params=["tied", "untied"])
def there(request, places) -> SimpleNamespace:
    return places[request.param]


def loader(engine: VLLMEngine) -> VariantLoader:
    return engine._llm.llm_engine.model_executor.driver_worker.worker._estune


def checked(
    there: SimpleNamespace, theta: Theta | None = None, member: Member = BASE
) -> DirectWriter | None:
    """What an engine that holds `member` has learned from its check."""
    theta = theta or there.theta
    load_both(there, member, theta)
    there.engine.check(theta, member)
    return loader(there.engine).direct


def taken(
    there: SimpleNamespace, member: Member, places: DirectWriter | None
) -> dict[str, torch.Tensor]:
    """What each part of the model makes of the member's weights, taken straight or by reloading."""
    loader(there.engine).direct = places
    there.engine.load(there.theta, member)
    return responses(loader(there.engine).model)


def test_every_member_is_the_one_that_reloading_gives_and_answers_as_on_the_transformers_engine(
    there,
):
    places = checked(there)
    assert places is not None
    for member in MEMBERS:
        reloaded, straight = taken(there, member, None), taken(there, member, places)
        assert reloaded.keys() == straight.keys()
        assert all(torch.equal(reloaded[name], response) for name, response in straight.items())
        there.reference.load(there.theta, member)
        same_answers(there)


def test_nothing_is_left_of_a_member_that_was_reloaded_between(there):
    places = checked(there)
    taken(there, MEMBERS[2], None)
    taken(there, MEMBERS[1], places)
    there.reference.load(there.theta, MEMBERS[1])
    same_answers(there)


def test_what_is_not_tuned_within_a_fused_layer_stays_as_in_the_files(there):
    member = Member(3, 1, 0.5, "iid", 0)
    theta = Theta.load(
        there.checkpoint,
        there.layout.targets([r"layers\.0\.self_attn\.q_proj", r"layers\.1\.mlp"]),
        share=True,
    )
    load_both(there, BASE)  # all parameters, so that the reference is whole
    assert checked(there, theta) is not None
    load_both(there, member, theta)
    changed = same_answers(there)
    load_both(there, BASE, theta)
    assert same_answers(there) != changed


def test_layers_without_proof_are_reloaded_and_members_answer_all_the_same(there, monkeypatch):
    with monkeypatch.context() as changed:
        # Layers would keep the previous member.
        changed.setattr("estune.engines.vllm_direct_writer._Target.pack", lambda target: None)
        written = checked(there)
        assert written is None or not any("proj" in name for name in written.names)
    load_both(there, MEMBERS[1])
    same_answers(there)


def test_a_layer_that_was_not_written_whole_is_an_error(there, monkeypatch):
    checked(there)
    whole = DirectWriter._fill
    with monkeypatch.context() as changed:
        changed.setattr(
            DirectWriter,
            "_fill",
            lambda self, name, *args, **kwargs: (
                "up_proj" in name or whole(self, name, *args, **kwargs)
            ),
        )
        with pytest.raises(
            EngineError,
            match="2 of vLLM's parameters were not written whole, MergedColumnParallelLinear",
        ):
            there.engine.load(there.theta, MEMBERS[1])
    load_both(there, MEMBERS[1])
    same_answers(there)


def test_layers_of_a_kind_that_is_not_known_are_left_to_vllms_reloading(there, monkeypatch):
    norm = type(loader(there.engine).model.model.norm)
    with monkeypatch.context() as changed:
        changed.setattr(
            norm, "process_weights_after_loading", lambda self, dtype: None, raising=False
        )
        assert checked(there) is None
    written = checked(there)
    assert written is not None
    assert not written.reloaded
