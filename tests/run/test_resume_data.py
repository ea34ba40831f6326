"""A run resumes with the same data only."""

import pytest

from estune.errors import DataError


def test_a_run_on_pictures_and_sets_can_be_resumed(make_trainer):
    from PIL import Image

    def rows(word):
        return [
            {
                "prompt": "what is red",
                "target": "x",
                "image": Image.new("RGB", (2, 2)),
                "ok": set(word),
            }
        ]

    make_trainer(train_dataset=rows("abcdef"), max_steps=1).train()
    assert (
        make_trainer(train_dataset=rows("fedcba"), max_steps=2)
        .train(resume_from_checkpoint=True)
        .global_step
        == 2
    )


def test_a_run_of_an_earlier_version_can_be_resumed_and_other_data_not(make_trainer, monkeypatch):
    import datetime

    from estune.errors import ConfigError
    from estune.run.data_fingerprint import _earlier

    rows = [{"prompt": "what is red", "target": "x", "day": datetime.date(2024, 1, 5)}]
    with monkeypatch.context() as earlier:
        earlier.setattr("estune.trainer.digest", _earlier)
        make_trainer(train_dataset=rows, max_steps=1).train()
    assert (
        make_trainer(train_dataset=rows, max_steps=2).train(resume_from_checkpoint=True).global_step
        == 2
    )
    other = [rows[0] | {"day": datetime.date(2024, 1, 6)}]
    with pytest.raises(
        ConfigError,
        match="train_data: the rows differ from those that the run in .* began with",
    ):
        make_trainer(train_dataset=other, max_steps=2).train(resume_from_checkpoint=True)


def test_data_without_content_are_refused_before_a_model_is_loaded(make_trainer):
    rows = [{"prompt": "what is red", "target": "x", "check": lambda text: 0}]
    with pytest.raises(
        DataError, match="train_dataset: row 0: column 'check' holds an object of type function"
    ):
        make_trainer(model="no/such/model/here", train_dataset=rows)


def test_objects_of_a_class_of_the_users_script_reach_reward_functions_in_their_processes(
    make_trainer,
):
    import os
    from dataclasses import make_dataclass

    local = make_dataclass("Local", ["pid"])  # no other process can import it
    local.__module__ = "__main__"
    rows = [{"prompt": "what is red", "check": local(os.getpid())}]

    def elsewhere(completions, check):
        return [float(check[0].pid != os.getpid())] * len(completions)

    trainer = make_trainer(
        train_dataset=rows, eval_dataset=None, reward_funcs=elsewhere, reward_workers=1, max_steps=1
    )
    assert trainer.train().metrics["reward"] == 1
