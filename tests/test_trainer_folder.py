"""What a run leaves in its folder: checkpoints, the best one, a config, a card."""

import errno
import fcntl
import json
import os
import shutil

import pytest
import torch
import yaml
from helpers import checkpoints_of, folder_of, metrics_of, same, short, weights_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from estune import ESConfig
from estune.common.checksummed_lines import checksummed
from estune.common.durable import in_turn, locked
from estune.config import build
from estune.errors import ConfigError, ModelError

# Checkpoints


def test_a_checkpoint_every_save_steps_and_after_the_last_step(make_trainer):
    trainer = make_trainer(max_steps=5, save_steps=2)
    trainer.train()
    assert checkpoints_of(trainer) == [2, 4, 5]


def test_a_checkpoint_holds_one_safetensors_file_and_what_the_base_had(make_trainer, mini):
    trainer = make_trainer()
    trainer.train()
    names = {path.name for path in (folder_of(trainer) / "checkpoint-4").iterdir()}
    assert names == {path.name for path in mini.iterdir()} | {"trainer_state.json", "estune.json"}
    assert [name for name in names if name.endswith((".safetensors", ".bin", ".pt"))] == [
        "model.safetensors"
    ]


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_loads_with_transformers(make_trainer, step):
    trainer = make_trainer()
    trainer.train()
    folder = folder_of(trainer) / f"checkpoint-{step}"
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded = dict(model.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights_of(folder).items())
    assert AutoTokenizer.from_pretrained(folder)("sky blue")["input_ids"]


def test_the_last_checkpoint_is_theta(make_trainer):
    trainer = make_trainer()
    trainer.train()
    assert same(weights_of(folder_of(trainer) / "checkpoint-4"), trainer.model.theta.tensors)


def test_parameters_that_are_not_tuned_stay_as_they_were(make_trainer, mini):
    trainer = make_trainer(target_parameters=["q_proj"])
    trainer.train()
    before, after = weights_of(mini), weights_of(folder_of(trainer) / "checkpoint-4")
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "model.layers.0.self_attn.q_proj.weight"
    ]


def test_target_parameters_that_match_nothing_are_refused(make_trainer):
    with pytest.raises(
        ConfigError, match=r"target_parameters: no parameter matches; they are named like model\."
    ):
        make_trainer(target_parameters=["no_such"])


def test_trainer_state_has_the_names_of_transformers(make_trainer):
    trainer = make_trainer()
    trainer.train()
    state = json.loads((folder_of(trainer) / "checkpoint-4" / "trainer_state.json").read_text())
    assert (state["global_step"], state["max_steps"], state["best_model_checkpoint"]) == (
        4,
        4,
        None,
    )
    assert state["num_input_tokens_seen"] == metrics_of(trainer)[-1]["num_tokens"]


def test_save_total_limit_keeps_the_newest(make_trainer):
    trainer = make_trainer(save_steps=1, save_total_limit=2)
    trainer.train()
    assert checkpoints_of(trainer) == [3, 4]


def scheduled(values):
    """A reward that is usual for the population, and the k-th of `values` for evaluation k."""
    left = list(values)

    def reward(completions, target, **columns):
        if target[0] == "held out":
            return [left.pop(0)] * len(completions)
        return short(completions, target)

    return reward


HELD_OUT = [{"prompt": "what is red", "target": "held out"}]


@pytest.mark.parametrize(("greater", "best"), [(True, 2), (False, 3)])
def test_the_best_checkpoint_is_kept_beside_the_newest(make_trainer, greater, best):
    settings = {
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_total_limit": 1,
        "max_steps": 5,
    }
    settings |= {"metric_for_best_model": "reward", "greater_is_better": greater}
    trainer = make_trainer(
        reward_funcs=scheduled([1.0, 9.0, -9.0, 9.0, 2.0]), eval_dataset=HELD_OUT, **settings
    )
    trainer.train()
    assert checkpoints_of(trainer) == [best, 5]
    state = json.loads((folder_of(trainer) / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_global_step"] == best
    assert state["best_metric"] == (9.0 if greater else -9.0)
    assert state["best_model_checkpoint"] == f"checkpoint-{best}"
    assert trainer.model.theta.version == 5


def test_load_best_model_at_end_leaves_the_best_parameters(make_trainer):
    settings = {
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_reward",
    }
    rewards = scheduled([1.0, 9.0, 3.0, 2.0, 9.0])
    trainer = make_trainer(
        reward_funcs=rewards, eval_dataset=HELD_OUT, load_best_model_at_end=True, **settings
    )
    trainer.train()
    assert same(weights_of(folder_of(trainer) / "checkpoint-2"), trainer.model.theta.tensors)
    assert trainer.evaluate()["eval_reward"] == 9.0
    trainer.save_model()
    assert same(
        weights_of(folder_of(trainer) / "final"), weights_of(folder_of(trainer) / "checkpoint-2")
    )


def test_a_metric_for_best_model_that_no_evaluation_has_names_those_there_are(make_trainer):
    trainer = make_trainer(eval_strategy="steps", metric_for_best_model="accuracy", max_steps=1)
    with pytest.raises(ConfigError, match=r"no 'eval_accuracy'; they have .*eval_reward"):
        trainer.train()


# The folder


def test_a_second_run_in_the_same_folder_is_refused(make_trainer):
    make_trainer().train()
    before = (make_trainer().folder.path / "journal.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="holds a run already; add --resume_from_checkpoint true"):
        make_trainer().train()
    assert (make_trainer().folder.path / "journal.jsonl").read_bytes() == before


def test_a_run_beside_a_running_one_is_refused_with_its_process(make_trainer):
    trainer = make_trainer()

    def meddle(completions, target, **columns):
        with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()}"):
            make_trainer().train(resume_from_checkpoint=True)
        return short(completions, target)

    trainer = make_trainer(reward_funcs=meddle, max_steps=1)
    assert trainer.train().global_step == 1


def test_a_disk_that_cannot_lock_files_is_named_and_converting_goes_on_without(
    tmp_path, monkeypatch
):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("estune.common.durable.fcntl.flock", flock)
    with (
        pytest.raises(
            ConfigError,
            match=r"output_dir: .* is on a disk that cannot lock files \(No locks available\)",
        ),
        locked(tmp_path, "output_dir"),
    ):
        pass
    with in_turn(tmp_path / "cache"):
        assert (tmp_path / "cache").is_dir()


def test_the_lock_is_let_go_when_a_run_ends(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    with (folder_of(trainer) / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_checkpoints_without_a_journal_are_not_taken_for_this_run(make_trainer):
    trainer = make_trainer()
    trainer.train()
    (folder_of(trainer) / "journal.jsonl").unlink()
    before = weights_of(folder_of(trainer) / "checkpoint-4")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="checkpoint"):
            make_trainer(seed=7).train(resume_from_checkpoint=resume)
    assert same(weights_of(folder_of(trainer) / "checkpoint-4"), before)


def test_metrics_of_an_abandoned_start_do_not_stay(make_trainer):
    trainer = make_trainer()
    folder_of(trainer).mkdir()
    (folder_of(trainer) / "metrics.jsonl").write_text(checksummed('{"step": 1, "reward": 77}'))
    trainer.train()
    assert [line["step"] for line in metrics_of(trainer)] == [1, 2, 3, 4]


# What is there already


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        "theta/step-3.safetensors",
        "completions/step-1.jsonl",
        "final/model.safetensors",
    ],
)
def test_a_file_that_a_run_would_replace_is_refused_and_stays(name, make_trainer):
    trainer = make_trainer()
    path = folder_of(trainer) / name
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 1, "loss": 0.5}\n')
    with pytest.raises(
        ConfigError,
        match=f"holds {name}, which a run would replace; move it away, or choose another",
    ):
        trainer.train()
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n'
    assert not (folder_of(trainer) / "journal.jsonl").exists()


def test_a_readme_and_a_config_of_the_user_stay_and_the_runs_stand_beside_them(
    make_trainer, caplog
):
    trainer = make_trainer()
    folder_of(trainer).mkdir()
    for name in ("README.md", "config.yaml"):
        (folder_of(trainer) / name).write_text("# mine\n")
    trainer.train()
    for name in ("README.md", "config.yaml"):
        assert (folder_of(trainer) / name).read_text() == "# mine\n"
        assert any(
            f"{name} was not written by estune and stays as it is" in line
            for line in caplog.messages
        )
    assert (
        "fine-tuned by evolution strategies"
        in (folder_of(trainer) / "estune-README.md").read_text()
    )
    assert (
        yaml.safe_load((folder_of(trainer) / "estune-config.yaml").read_text())["population_size"]
        == 4
    )


def test_a_card_that_the_user_edited_stays_when_the_run_goes_on(make_trainer):
    make_trainer(max_steps=2).train()
    card = folder_of(make_trainer()) / "README.md"
    edited = card.read_text().replace("# ", "# My ")
    card.write_text(edited)
    make_trainer(max_steps=4).train(resume_from_checkpoint=True)
    assert card.read_text() == edited
    assert "4 steps" in card.with_name("estune-README.md").read_text()


def test_a_run_that_goes_on_replaces_its_own_card(make_trainer):
    make_trainer(max_steps=2).train()
    trainer = make_trainer(max_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert "4 steps" in (folder_of(trainer) / "README.md").read_text()
    assert not list(folder_of(trainer).glob("estune-*"))


def test_the_base_models_folder_is_no_place_for_a_run(make_trainer, mini):
    before = {path.name: path.read_bytes() for path in mini.iterdir()}
    with pytest.raises(ConfigError, match="is the folder of the base model; choose another"):
        make_trainer(output_dir=str(mini)).train()
    assert {
        path.name: path.read_bytes() for path in mini.iterdir() if path.name != ".lock"
    } == before


def test_a_folder_named_base_that_holds_another_model_stays(make_trainer, mini, tiny):
    model = AutoModelForCausalLM.from_pretrained(mini)
    shutil.copytree(tiny, folder_of(make_trainer()) / "base")
    with pytest.raises(ModelError, match="its weights differ from those in .*base"):
        make_trainer(model=model)
    assert (folder_of(make_trainer()) / "base" / "model.safetensors").read_bytes() == (
        tiny / "model.safetensors"
    ).read_bytes()


def test_save_model_replaces_nothing_but_what_it_saved(make_trainer, tmp_path, tiny):
    trainer = make_trainer()
    trainer.train()
    copy = tmp_path / "mine"
    shutil.copytree(tiny, copy)
    with pytest.raises(ConfigError, match="mine exists already; give save_model a new folder"):
        trainer.save_model(str(copy))
    assert (copy / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    for _ in range(2):
        trainer.save_model(str(tmp_path / "new"))
    assert same(weights_of(tmp_path / "new"), trainer.model.theta.tensors)


def test_save_model_into_the_runs_folder_as_in_trl_leaves_the_run_there(make_trainer):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model(trainer.args.output_dir)
    assert (folder_of(trainer) / "journal.jsonl").is_file()
    assert same(weights_of(folder_of(trainer) / "final"), trainer.model.theta.tensors)


def test_config_yaml_gives_the_same_settings_again(make_trainer):
    trainer = make_trainer(
        noise="correlated",
        stop=["</answer>"],
        reward_weights=[2.0],
        target_parameters=["mlp"],
        learning_rate=1e-4,
    )
    trainer.train()
    read = build(ESConfig, yaml.safe_load((folder_of(trainer) / "config.yaml").read_text()))
    assert read == trainer.args


def test_no_access_token_is_written_anywhere(make_trainer):
    secret = "hf_" + "q" * 34
    settings = {
        "model_init_kwargs": {
            "token": secret,
            "use_auth_token": secret,
            "attn_implementation": "eager",
        }
    }
    trainer = make_trainer(
        report_to="tensorboard", chat_template_kwargs={"thinking": True}, **settings
    )
    trainer.train()
    text = b"".join(path.read_bytes() for path in folder_of(trainer).rglob("*") if path.is_file())
    assert secret.encode() not in text
    read = yaml.safe_load((folder_of(trainer) / "config.yaml").read_text())
    assert read["model_init_kwargs"] == {"attn_implementation": "eager"}


def test_the_model_card_says_what_was_done(make_trainer, mini):
    trainer = make_trainer(eval_strategy="steps")
    trainer.train()
    _, front, body = (folder_of(trainer) / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    assert yaml.safe_load(front)["base_model"] == str(mini)
    assert "N = 4, σ = 0.02, α = 0.01, 4 steps, seed 42, iid noise" in body
    assert f"| eval_reward | {metrics_of(trainer)[-1]['eval_reward']:.4g} |" in body
    assert 'from_pretrained("checkpoint-4")' in body
