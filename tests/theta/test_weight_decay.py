"""Anchored weight decay pulls θ towards the base model, with the same bits everywhere.

The journal records how strongly.
"""

import json

import numpy as np
import pytest
import torch
from helpers import assert_same, interrupted, repeatable_steps, short
from safetensors.torch import save_file

from estune.common.types import ThetaUpdate
from estune.config import ESConfig
from estune.errors import JournalError, ModelError
from estune.noise import gaussian, kernels
from estune.theta.checkpoint import open_checkpoint
from estune.theta.journal import Journal
from estune.theta.theta import Theta
from estune.workers.actors import KeeperActor
from estune.workers.model_source import ModelSource

SHAPES = {
    "b.weight": (300, 70),
    "a.weight": (2_200_003,),
    "norm": (7,),
    "empty": (0, 3),
    "scalar": (),
}
SEEDS, COEFFICIENTS = [5, 2**64 - 1], [float(np.float32(1e-3)), float(np.float32(-3e-4))]
D = float(np.float32(0.013))


def random(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(size, generator=generator) * torch.logspace(-6, 2, size)
        if size
        else torch.zeros(0)
    )


def decayed(theta, base, d):
    """The definition, in numpy: three operations, each rounded to fp32."""
    keep = np.float32(1) - np.float32(d)
    return base + (theta - base) * keep


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def base(tmp_path, request):
    """A checkpoint of θ₀ in the dtype of a file."""
    values = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(request.param)
        for name, shape in SHAPES.items()
    }
    save_file(values, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return open_checkpoint(tmp_path)


def moved(base, threads=None):
    """A centre one update away from θ₀, and θ₀ and θ as arrays."""
    theta = Theta({name: base.read(name).float() for name in SHAPES}, base=base, threads=threads)
    start = {name: values.numpy().copy() for name, values in theta.tensors.items()}
    theta.update(ThetaUpdate([1], [0.25], noise="iid", version=0))
    return theta, start, {name: values.numpy().copy() for name, values in theta.tensors.items()}


@pytest.mark.parametrize("d", [1.0, 0.5, D, float(np.float32(1e-7)), float(np.float32(1e-30))])
@pytest.mark.parametrize("size", [0, 1, 4099])
def test_a_decay_has_the_bits_of_the_definition(d, size):
    theta, base = random(size, 1), random(size, 2)
    wanted = decayed(theta.numpy(), base.numpy(), d)
    kernels.decay(theta, base, d)
    assert theta.numpy().tobytes() == wanted.tobytes()


def test_no_product_and_sum_of_a_decay_are_fused():
    theta, base, keep = random(20_000, 1), random(20_000, 2), np.float32(1) - np.float32(D)
    difference = (theta.numpy() - base.numpy()).astype(np.float64)
    fused = (base.numpy().astype(np.float64) + difference * np.float64(keep)).astype(np.float32)
    assert np.any(fused != decayed(theta.numpy(), base.numpy(), D))
    kernels.decay(theta, base, D)
    assert np.any(fused != theta.numpy())


@pytest.mark.parametrize("threads", [1, 3])
def test_an_update_decays_first_and_then_adds_whatever_the_threads_and_the_files_dtype(
    base, threads
):
    theta, start, before = moved(base, threads)
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=1, decay=D))
    for name, values in theta.tensors.items():
        delta = np.zeros(SHAPES[name], np.float32)
        for seed, coefficient in zip(SEEDS, COEFFICIENTS, strict=True):
            delta = delta + np.float32(coefficient) * gaussian(
                seed, name, SHAPES[name], backend="numpy"
            )
        assert (
            values.numpy().tobytes() == (decayed(before[name], start[name], D) + delta).tobytes()
        ), name


def test_an_update_with_decay_that_arrives_twice_is_applied_once(base):
    theta, *_ = moved(base)
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=1, decay=D))
    once = theta.digest()
    theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=1, decay=D))
    assert (theta.digest(), theta.version) == (once, 2)


def test_nothing_decays_where_nothing_is_updated(base):
    theta, *_ = moved(base)
    before = theta.digest()
    theta.update(ThetaUpdate(SEEDS, [], noise="iid", version=1, decay=D))
    assert (theta.digest(), theta.version) == (before, 2)


@pytest.mark.parametrize("d", [-0.1, 1.5, float("nan")])
def test_a_decay_that_is_no_part_of_the_way_is_refused_and_leaves_theta_alone(base, d):
    theta, *_ = moved(base)
    before = theta.digest()
    with pytest.raises(JournalError, match="decays by"):
        theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=1, decay=d))
    assert (theta.digest(), theta.version) == (before, 1)


def test_a_centre_without_a_base_refuses_to_decay_and_is_left_alone():
    theta = Theta({"w": torch.ones(5)})
    with pytest.raises(ModelError, match="needs the base model"):
        theta.update(ThetaUpdate([1], [0.1], noise="iid", version=0, decay=D))
    assert theta.at(0)


def test_a_base_model_that_is_gone_is_told_and_theta_counts_as_torn(base):
    theta, *_ = moved(base)
    (base.folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read any more"):
        theta.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=1, decay=D))
    assert not theta.at(1) and not theta.at(2)


def test_the_keeper_of_another_node_decays_to_the_same_bits(mini):
    checkpoint = open_checkpoint(mini)
    names = sorted(checkpoint.tensors)
    here = Theta.load(checkpoint, names)
    keeper = KeeperActor(
        ModelSource(str(mini), None, checkpoint, None, names, None), ESConfig(engine="fake")
    )
    here.update(ThetaUpdate([1], [0.1], noise="iid", version=0))
    keeper.update(ThetaUpdate([1], [0.1], "iid", 0, 0.0))
    here.update(ThetaUpdate(SEEDS, COEFFICIENTS, noise="iid", version=1, decay=D))
    keeper.update(ThetaUpdate(SEEDS, COEFFICIENTS, "iid", 1, D))
    assert keeper.digest() == here.digest()


# A run


def test_a_run_without_decay_has_no_trace_of_it(undisturbed_plain):
    assert all(
        "decay" not in step and "task_rewards" not in step
        for step in repeatable_steps(undisturbed_plain)
    )


def test_the_journal_holds_alpha_times_lambda_in_fp32_as_the_schedule_has_it(make_trainer):
    trainer = make_trainer(weight_decay=0.3, learning_rate=0.02, lr_scheduler_type="linear")
    trainer.train()
    decays = [step["decay"] for step in repeatable_steps(trainer.folder.path)]
    assert decays == [float(np.float32(0.02 * (1 - s / 4) * 0.3)) for s in range(4)]


def test_a_step_of_equal_fitness_decays_nothing_and_does_not_say_so(make_trainer):
    def constant(completions, **columns):
        return [1.0] * len(completions)

    trainer = make_trainer(reward_funcs=constant, weight_decay=1.0)
    trainer.train()
    assert all(
        step["coefficients"] == [] and "decay" not in step
        for step in repeatable_steps(trainer.folder.path)
    )
    assert trainer.model.theta.digest() == Journal.open(trainer.folder.path).header.digest


def test_decay_keeps_a_run_nearer_to_its_base(make_trainer, tmp_path):
    def distance(trainer):
        trainer.train()
        base = trainer.model.checkpoint
        return sum(
            float((values - base.read(name)).norm() ** 2)
            for name, values in trainer.model.theta.tensors.items()
        )

    free = make_trainer(output_dir=str(tmp_path / "free"), max_steps=8)
    held = make_trainer(output_dir=str(tmp_path / "held"), max_steps=8, weight_decay=50.0)
    assert distance(held) < 0.5 * distance(free)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replay_of_each_step_equals_its_checkpoint(make_trainer, tmp_path, dtype):
    from helpers import make_model

    small = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model = make_model(tmp_path / "model", dtype=dtype, **small)
    trainer = make_trainer(model, save_steps=1, weight_decay=5.0)
    trainer.train()
    journal = Journal.open(trainer.folder.path)
    theta = Theta.load(open_checkpoint(model), trainer.model.tuned)
    assert list(journal.replay(theta, 4)) == [1, 2, 3, 4]
    assert theta.digest() == trainer.model.theta.digest() == journal.steps[-1].digest


def test_the_replay_command_decays_too(make_trainer, tmp_path):
    from estune.cli.main import main

    trainer = make_trainer(save_steps=1, weight_decay=5.0)
    trainer.train()
    assert (
        main(
            [
                "replay",
                str(trainer.folder.path),
                "--step",
                "3",
                "--output",
                str(tmp_path / "replayed"),
            ]
        )
        == 0
    )
    saved = trainer.folder.path / "checkpoint-3" / "model.safetensors"
    assert (tmp_path / "replayed" / "model.safetensors").read_bytes() == saved.read_bytes()


def test_a_run_with_decay_that_died_ends_with_the_same_bytes(make_trainer, tmp_path):
    whole = make_trainer(weight_decay=5.0, output_dir=str(tmp_path / "whole"))
    whole.train()
    folder = interrupted(make_trainer, weight_decay=5.0)
    make_trainer(weight_decay=5.0).train(resume_from_checkpoint=True)
    assert_same(folder, whole.folder.path)
    assert all(step["decay"] > 0 for step in repeatable_steps(folder))


def test_a_line_with_a_decay_but_no_coefficients_is_refused(make_trainer):
    from helpers import signed

    trainer = make_trainer(weight_decay=1.0)
    trainer.train()
    path = trainer.folder.path / "journal.jsonl"
    first, second, *rest = path.read_text().splitlines(keepends=True)
    record = json.loads(second) | {"coefficients": []}
    del record["checksum"]
    path.write_text(first + signed(record) + "".join(rest))
    with pytest.raises(JournalError, match="line 2 has a decay without coefficients"):
        Journal.open(trainer.folder.path)


def test_another_decay_is_refused_on_resume(make_trainer):
    interrupted(make_trainer)
    with pytest.raises(ValueError, match=r"^weight_decay: the run in .* began with 0.0, not 0.1"):
        make_trainer(weight_decay=0.1, reward_funcs=short).train(resume_from_checkpoint=True)
