"""A run's folder is data: none of its code runs unless the command allows it."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import FLAGS, ROOT, signed

from estune import ESConfig
from estune.cli.main import main
from estune.errors import ConfigError
from estune.run.own_files import write_own

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
CODE = """open({ran!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM
class OtherConfig(LlamaConfig): model_type = "other"
class OtherModel(LlamaForCausalLM): config_class = OtherConfig
"""


@pytest.fixture
def ran(tmp_path):
    """A file that is there once the code of `sent` ran."""
    return tmp_path / "ran"


@pytest.fixture
def sent(mini, tmp_path, ran):
    """Somebody else's run: its journal trusts code, and its base model brings some."""
    base = shutil.copytree(mini, tmp_path / "sent" / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {
        "model_type": "other",
        "auto_map": {"AutoConfig": "other.OtherConfig", "AutoModelForCausalLM": "other.OtherModel"},
    }
    (base / "config.json").write_text(json.dumps(config))
    (base / "other.py").write_text(CODE.format(ran=str(ran)))
    settings = {
        "trust_remote_code": True,
        "target_parameters": None,
        "model_revision": None,
        "prompt_shaping": None,
        "antithetic": False,
    }
    header = {"format": 1, "model": str(base), "digest": "0" * 32, "config": settings}
    (tmp_path / "sent" / "journal.jsonl").write_text(signed(header))
    return Path("sent")


@pytest.fixture
def told(caplog):
    """The lines that the command line shows on standard error while it goes."""
    caplog.set_level(logging.INFO, "estune")
    return lambda: [
        record.getMessage() for record in caplog.records if record.name.startswith("estune.cli")
    ]


def test_replay_does_not_run_code_because_the_journal_says_so(sent, ran, told, refused):
    message = refused("replay", sent, "--output", "again")
    assert "has its own code; read it, and add --trust_remote_code true if it may run" in message
    assert told() == [f"base model, from the journal of sent: {sent.absolute() / 'base'}"]
    assert not ran.exists()


@pytest.mark.parametrize("flag", [["--trust_remote_code"], ["--trust_remote_code", "true"]])
def test_replay_runs_code_that_was_allowed_when_the_command_was_typed(sent, ran, capsys, flag):
    assert main(["replay", str(sent), "--output", "again", *flag]) == 2
    assert "the base model is not the one that this run had" in capsys.readouterr().err
    assert ran.exists()


def test_replay_takes_nothing_but_true_and_false_for_trust(sent, refused, ran):
    assert main(["replay", str(sent), "--output", "again", "--trust_remote_code", "false"]) == 2
    assert main(["replay", str(sent), "--output", "again", "--trust_remote_code", "maybe"]) == 2
    assert not ran.exists()


def test_what_a_journal_names_is_shown_without_control_characters(sent, told):
    record = json.loads((sent / "journal.jsonl").read_text())
    del record["checksum"]
    (sent / "journal.jsonl").write_text(signed(record | {"model": "no\x1b[2Jsuch\nmodel/here"}))
    assert main(["replay", str(sent), "--output", "again"]) == 2
    assert told() == ["base model, from the journal of sent: no[2Jsuch model/here"]


def test_a_model_with_code_is_refused_by_eval_and_train(sent, ran, refused, data):
    model, task = sent / "base", ["--task", "conciseness", "--engine", "fake"]
    for command in (
        ["eval", "--model", model, *task],
        ["train", "--model_name_or_path", model, *task, "--output_dir", "out"],
    ):
        assert "has its own code; read it" in refused(*command)
    assert not ran.exists()


@pytest.mark.slow
def test_diagnose_does_not_run_code_because_the_journal_says_so(sent, ran):
    script = ROOT / "recipes" / "learning" / "diagnose.py"
    ended = subprocess.run(
        [sys.executable, script, sent], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "base model, from the journal" in ended.stderr
    assert "has its own code; read it" in ended.stderr
    assert not ran.exists()


# The config.yaml of a run's folder


def settings_of(folder, **values):
    """Write the config.yaml of a run in the folder; return the command that trains by it."""
    folder.mkdir(exist_ok=True)
    write_own(folder / "config.yaml", yaml.safe_dump(values), "# {}")
    return [
        "train",
        "--config",
        str(folder / "config.yaml"),
        "--output_dir",
        "out",
        *FLAGS,
        "--disable_tqdm",
    ]


def test_what_a_runs_config_names_is_shown_before_it_is_used(mini, data, told):
    Path("here_rewards.py").write_text(
        "def f(completions, **columns): return [float(len(text)) for text in completions]\n"
    )
    values = {
        "model_name_or_path": str(mini),
        "dataset_name": str(data),
        "reward_funcs": ["here_rewards.f"],
    }
    assert main(settings_of(Path("old"), **values, model_init_kwargs={"revision": "main"})) == 0
    assert told() == [
        f"old/config.yaml: model_name_or_path: {mini}",
        "old/config.yaml: reward_funcs: ['here_rewards.f']",
        "old/config.yaml: model_init_kwargs: {'revision': 'main'}",
    ]


@pytest.mark.parametrize(
    "named",
    [
        {"reward_funcs": ["sent_module.f"]},
        {"reward_funcs": "sent_module.f"},
        {"task": "sent_module.TASK"},
        {"datasets": [{"path": "data.jsonl", "reward_funcs": ["sent_module.f"]}]},
        {"datasets": [{"task": "sent_module.inner.TASK"}]},
    ],
)
@pytest.mark.parametrize("package", [True, False])
def test_a_module_that_lies_in_the_runs_folder_is_refused_unread(
    mini, tmp_path, ran, refused, monkeypatch, named, package
):
    folder = tmp_path / "sent"
    command = settings_of(folder, model_name_or_path=str(mini), **named)
    module = folder / "sent_module" / "__init__.py" if package else folder / "sent_module.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text(f"open({str(ran)!r}, 'w').close()\nTASK = f = None\n")
    monkeypatch.chdir(folder)
    message = refused(
        *[word.replace(str(folder / "config.yaml"), "config.yaml") for word in command]
    )
    assert f"would run {module.resolve()}, which came with the run in" in message
    assert "add --trust_remote_code true" in message
    assert not ran.exists()


def test_a_config_beside_a_journal_is_a_runs_whoever_wrote_it(
    mini, tmp_path, ran, refused, monkeypatch
):
    command = settings_of(
        tmp_path / "sent", model_name_or_path=str(mini), reward_funcs=["sent_module.f"]
    )
    config = tmp_path / "sent" / "config.yaml"
    config.write_text(config.read_text().rpartition("#")[0])
    (tmp_path / "sent" / "journal.jsonl").touch()
    (tmp_path / "sent" / "sent_module.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path / "sent")
    assert "which came with the run in" in refused(*command)
    assert not ran.exists()


def test_a_config_of_the_users_own_runs_the_modules_beside_it(mini, data, tmp_path, monkeypatch):
    values = {
        "model_name_or_path": str(mini),
        "dataset_name": str(data),
        "reward_funcs": ["my_own_rewards.f"],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "my_own_rewards.py").write_text(
        "def f(completions, **columns): return [float(len(text)) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", "--config", "config.yaml", "--output_dir", "out", *FLAGS, "--disable_tqdm"])
        == 0
    )


def test_a_module_in_the_runs_folder_runs_once_that_was_allowed(
    mini, data, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "mine"
    command = settings_of(
        folder, model_name_or_path=str(mini), dataset_name=str(data), reward_funcs=["own_rewards.f"]
    )
    (folder / "own_rewards.py").write_text(
        "def f(completions, **columns): return [float(len(text)) for text in completions]\n"
    )
    monkeypatch.chdir(folder)
    assert main([*command, "--trust_remote_code", "true"]) == 0


def run_with_a_module(folder, mini, data, ran):
    """Write a run's config.yaml that trusts code, and its module; return the command."""
    command = settings_of(
        folder,
        model_name_or_path=str(mini),
        dataset_name=str(data),
        reward_funcs=["sent_rewards.f"],
        trust_remote_code=True,
    )
    reward = "def f(completions, **columns): return [0.0] * len(completions)\n"
    (folder / "sent_rewards.py").write_text(f"open({str(ran)!r}, 'w').close()\n{reward}")
    return command


def test_a_runs_config_cannot_allow_the_modules_in_its_own_folder(
    mini, data, tmp_path, ran, refused, monkeypatch
):
    command = run_with_a_module(tmp_path / "sent", mini, data, ran)
    monkeypatch.chdir(tmp_path / "sent")
    assert "which came with the run in" in refused(*command)
    assert not ran.exists()


def test_a_config_that_no_run_wrote_can_allow_the_modules_in_a_runs_folder(
    mini, data, tmp_path, ran, monkeypatch
):
    command = run_with_a_module(tmp_path / "mine", mini, data, ran)
    own = tmp_path / "trust.yaml"
    own.write_text("trust_remote_code: true\n")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.delitem(sys.modules, "sent_rewards", raising=False)
    assert main([command[0], "--config", str(own), *command[1:]]) == 0
    assert ran.exists()


def test_a_file_of_settings_that_turns_trust_on_is_said_once(mini, told):
    Path("run.yaml").write_text(
        yaml.safe_dump({"trust_remote_code": True, "model_name_or_path": str(mini)})
    )
    command = [
        "--config",
        "run.yaml",
        "--task",
        "conciseness",
        "--engine",
        "fake",
        "--max_eval_samples",
        "2",
    ]
    assert main(["eval", *command, "--trust_remote_code", "false"]) == 0
    assert told() == []
    assert main(["eval", *command]) == 0
    assert told() == [
        "run.yaml: turns trust_remote_code on, so code that comes with the model runs"
    ]


@pytest.mark.parametrize("name", ["model_init_kwargs", "engine_kwargs"])
def test_trust_cannot_be_slipped_in_with_other_settings(name):
    with pytest.raises(ConfigError, match=f"{name}: trust_remote_code is a setting"):
        ESConfig(**{name: {"trust_remote_code": True}})


def test_a_reward_model_that_brings_code_is_refused_without_a_question(
    sent, ran, refused, mini, data
):
    where = [
        "--model_name_or_path",
        mini,
        "--dataset_name",
        data,
        "--output_dir",
        "out",
        "--reward_funcs",
        sent / "base",
    ]
    assert "cannot be loaded as a reward model" in refused("train", *where, "--engine", "fake")
    assert not ran.exists()
