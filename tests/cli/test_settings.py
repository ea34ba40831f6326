"""The help, the flags and the YAML files: what they mean, and the one line when they are wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FLAGS, config_file, journal, settings_of, train_on

import estune
from estune import __version__
from estune.cli.main import main
from estune.config import RunConfig
from estune.tasks import TASKS

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


# help


def test_the_module_is_the_command_and_its_help_names_every_command():
    shown = subprocess.run(
        [sys.executable, "-m", "estune", "--help"], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(
        command in shown.stdout
        for command in ("train", "eval", "compare", "score", "replay", "tasks")
    )
    assert "estune train --task conciseness" in shown.stdout


@pytest.mark.parametrize("command", ["train", "eval", "compare", "score", "replay"])
def test_the_help_of_each_command_shows_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"\n  estune {command} " in out
    assert err == ""


def test_the_help_of_tasks_says_what_it_does(capsys):
    assert main(["tasks", "--help"]) == 0
    assert "List the built-in tasks" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "eval", "compare"])
def test_the_help_lists_every_setting_with_its_default(command, capsys):
    main([command, "--help"])
    out = capsys.readouterr().out
    assert all(f"--{name} " in out for name in RunConfig.__dataclass_fields__)
    assert "[0.001]" in out


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"estune {__version__}\n"


def test_tasks_lists_every_task_with_its_summary(capsys):
    assert main(["tasks"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed][: len(TASKS)] == list(TASKS)
    assert all(task.summary in line for task, line in zip(TASKS.values(), listed, strict=False))


# what is wrong on the command line itself


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["trian"], "train"),
        (["tasks", "countdown"], "'countdown'"),
        (["train", "--sigm", "0.1"], "'--sigm'; did you mean 'sigma'?"),
        (["train", "--sigm=0.1"], "'--sigm'; did you mean 'sigma'?"),
        (["train", "--population-size", "4"], "did you mean 'population_size'?"),
        (["train", "--confg", "run.yaml"], "did you mean 'config'?"),
        (["train", "stray"], "'stray'"),
        (["train", "--qqqqzzzz", "4"], "see --help"),
        (["train", "--sigma"], "--sigma: expected one argument; see estune train --help"),
        (["train", "--stop"], "--stop: expected at least one argument"),
        (["eval", "--modle", "x"], "did you mean 'model'?"),
        (["eval", "--outptu", "x"], "did you mean 'output'?"),
        (["score", "--task", "countdown", "--completion", "x"], "--completions"),
        (["score", "--completions", "x", "--taks", "countdown"], "did you mean 'task'?"),
        (["score", "--completions"], "expected one argument"),
        (
            ["score", "--completions", "x"],
            "task: give one (estune tasks lists them), or reward_funcs",
        ),
        (["replay"], "RUN"),
        (["replay", "out", "--output", "o", "--stpe", "1"], "did you mean 'step'?"),
        (["train"], "model_name_or_path: give a hub id, a local folder or a .gguf file"),
        (["eval", "--task", "countdown"], "model: give a hub id, a local folder or a .gguf file"),
        (
            ["train", "--model_name_or_path", "x"],
            "task: give one (estune tasks lists them), or dataset_name and reward_funcs",
        ),
        (
            ["train", "--model_name_or_path", "x", "--dataset_name", "y"],
            "reward_funcs: give a built-in name or a dotted path",
        ),
    ],
)
def test_what_is_missing_or_misspelt_is_named_with_the_way_out(arguments, says, refused):
    assert says in refused(*arguments)


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("sigma", "0", "greater than 0"),
        ("sigma", "-0.1", "greater than 0"),
        ("sigma", "nan", "finite"),
        ("sigma", "much", "number"),
        ("population_size", "1", "at least 2"),
        ("population_size", "2.5", "integer"),
        ("antithetic", "perhaps", "boolean"),
        ("noise", "pink", "'iid' or 'correlated'"),
        ("model_init_kwargs", "3", "dictionary"),
        ("model_init_kwargs", "{a: ", "--model_init_kwargs: not valid YAML"),
        ("model_init_kwargs", "{a: 2024-99-99}", "--model_init_kwargs: not valid YAML"),
        ("task", "countdwon", "did you mean 'countdown'?"),
        ("task", "zzz", "conciseness, conciseness_correct, countdown, countdown_binary"),
    ],
)
def test_a_wrong_value_of_a_flag_names_the_flag_and_what_is_right(flag, value, says, refused):
    message = refused("train", "--model_name_or_path", "x", f"--{flag}", value)
    assert flag in message
    assert says in message


# YAML files


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sigmma: 1", "run.yaml: unknown setting 'sigmma'; did you mean 'sigma'?"),
        ("sigma: -1", "run.yaml: sigma: must be greater than 0"),
        ("sigma: .nan", "run.yaml: sigma: must be a finite number"),
        ("sigma: yes", "run.yaml: sigma: must be a number"),
        ("population_size: many", "run.yaml: population_size: must be a valid integer"),
        ("population_size: 1", "run.yaml: population_size: must be at least 2"),
        ("task: nope", "there is no task 'nope'"),
        ("- a\n- b", "run.yaml: must hold settings, one 'name: value' per line"),
        ("just text", "run.yaml: must hold settings"),
        ("1: 2", "run.yaml: must hold settings"),
        ("a: [", "run.yaml: not valid YAML"),
        ("a: !!python/object:os.system {}", "run.yaml: not valid YAML"),
        ("run_name: 2024-99-99", "run.yaml: not valid YAML"),
        ("[" * 5000, "run.yaml: not valid YAML"),
        ("sigma: " + "9" * 5000, "run.yaml: not valid YAML"),
    ],
)
def test_what_is_wrong_in_a_yaml_file_is_said_with_the_files_name(text, says, refused):
    Path("run.yaml").write_text(text)
    assert says in refused("train", "--config", "run.yaml")


def test_a_yaml_file_that_cannot_be_read_is_named_with_the_reason(refused):
    assert "missing.yaml: cannot be read (No such file or directory)" in refused(
        "train", "--config", "missing.yaml"
    )
    Path("folder").mkdir()
    assert "folder: cannot be read (Is a directory)" in refused("train", "--config", "folder")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: cannot be read" in refused("train", "--config", "binary.yaml")


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("sigma: -1", "seed: 1", "first.yaml: sigma: must be greater than 0"),
        ("seed: 1", "sigma: -1", "second.yaml: sigma: must be greater than 0"),
        ("seed: 1", "sigmma: 1", "second.yaml: unknown setting 'sigmma'"),
        ("sigma: -1", "sigmma: 1", "second.yaml: unknown setting 'sigmma'"),
        ("task: nope", "seed: 1", "first.yaml: there is no task 'nope'"),
        ("seed: 1", "a: [", "second.yaml: not valid YAML"),
        (
            "antithetic: true",
            "population_size: 3",
            "second.yaml: population_size: antithetic members come in pairs",
        ),
        ("sigma: -1", "sigma: -2", "second.yaml: sigma: must be greater than 0; it is -2"),
    ],
)
def test_of_several_yaml_files_the_wrong_one_is_named(first, second, says, refused):
    Path("first.yaml").write_text(first)
    Path("second.yaml").write_text(second)
    assert f"estune: {says}" in refused("train", "--config", "first.yaml", "second.yaml")


def test_a_missing_one_of_several_yaml_files_is_named(refused):
    config_file(sigma=0.1)
    assert "missing.yaml: cannot be read" in refused(
        "train", "--config", "run.yaml", "missing.yaml"
    )


def test_an_empty_yaml_file_sets_nothing(refused):
    Path("run.yaml").write_text("# nothing yet\n")
    assert "model_name_or_path: give" in refused("train", "--config", "run.yaml")


def test_a_run_from_a_yaml_file_with_flags_that_override_it(mini, data):
    Path("run.yaml").write_text(
        f"model_name_or_path: {mini}\ndataset_name: {data}\n"
        "reward_funcs: [conciseness_reward]\nengine: fake\n"
        "sigma: 1e-3\nlearning_rate: 2e-2\npopulation_size: 4\nmax_steps: 9\nantithetic: true\n"
        "stop: [END, STOP]\nreport_to: none\neval_strategy: no\n"
    )
    assert (
        main(
            [
                "train",
                "--config",
                "run.yaml",
                "--max_steps",
                "1",
                "--antithetic",
                "false",
                "--stop",
                "none",
            ]
        )
        == 0
    )
    config = settings_of("estune-output")
    assert config["sigma"] == 0.001
    assert config["learning_rate"] == 0.02
    assert (config["population_size"], config["max_steps"]) == (4, 1)
    assert (config["antithetic"], config["stop"], config["eval_strategy"]) == (False, None, "no")
    assert len(journal("estune-output")) == 2


def test_a_flag_wins_over_the_file_and_the_file_over_the_tasks_default(mini):
    default = TASKS["conciseness"].defaults["max_completion_length"]
    base = ["train", "--model_name_or_path", str(mini), *FLAGS, "--max_steps", "1"]
    assert main([*base, "--task", "conciseness", "--output_dir", "a"]) == 0
    config_file(task="conciseness", max_completion_length=7)
    assert main([*base, "--config", "run.yaml", "--output_dir", "b"]) == 0
    assert (
        main([*base, "--config", "run.yaml", "--max_completion_length", "9", "--output_dir", "c"])
        == 0
    )
    assert [settings_of(folder)["max_completion_length"] for folder in "abc"] == [default, 7, 9]


@pytest.mark.parametrize(
    "configs",
    [["--config", "run.yaml", "over.yaml"], ["--config", "run.yaml", "--config", "over.yaml"]],
)
def test_a_later_file_overrides_an_earlier_one_and_a_flag_both(configs, mini, data):
    config_file(sigma=0.1, seed=1, learning_rate=0.1, population_size=3, eval_strategy="no")
    config_file(Path("over.yaml"), sigma=0.2, seed=2, population_size=4, antithetic=True)
    model = [
        "--model_name_or_path",
        mini,
        "--dataset_name",
        data,
        "--reward_funcs",
        "conciseness_reward",
    ]
    assert (
        main(
            list(
                map(
                    str,
                    [
                        "train",
                        *configs,
                        *model,
                        "--engine",
                        "fake",
                        "--max_steps",
                        "1",
                        "--seed",
                        "3",
                    ],
                )
            )
        )
        == 0
    )
    config = settings_of("estune-output")
    assert [config[name] for name in ("sigma", "seed", "learning_rate", "population_size")] == [
        0.2,
        3,
        0.1,
        4,
    ]


def test_what_a_later_file_mends_is_not_held_against_an_earlier_one(mini, data):
    config_file(sigma=-1)
    config_file(Path("over.yaml"), sigma=0.1)
    assert main(train_on(mini, data, "--config", "run.yaml", "over.yaml", "--max_steps", "1")) == 0


def test_a_flag_can_complete_what_the_file_alone_would_contradict(mini, data):
    config_file(
        antithetic=True,
        population_size=3,
        metric_for_best_model="reward",
        eval_dataset_name=str(data),
    )
    more = [
        "--config",
        "run.yaml",
        "--eval_strategy",
        "steps",
        "--population_size",
        "4",
        "--max_steps",
        "1",
    ]
    assert main(train_on(mini, data, *more)) == 0
    assert settings_of()["population_size"] == 4


def test_a_wrong_flag_is_not_blamed_on_a_file(refused):
    config_file(sigma=0.1)
    config_file(Path("over.yaml"), antithetic=True, population_size=3)
    assert refused("train", "--config", "run.yaml", "--sigma", "-1").startswith("estune: sigma: ")
    assert refused("train", "--config", "run.yaml", "over.yaml", "--sigma", "-1").startswith(
        "estune: sigma: "
    )


@pytest.mark.parametrize(
    ("flags", "value"),
    [(["--antithetic"], True), (["--antithetic", "true"], True), (["--antithetic=no"], False)],
)
def test_a_boolean_flag_may_stand_alone_or_take_a_value(flags, value, mini, data):
    assert main(train_on(mini, data, "--max_steps", "1", *flags)) == 0
    assert settings_of()["antithetic"] is value


def test_lists_and_mappings_are_given_as_flags(mini, data):
    lists = [
        "--stop",
        "END",
        "a b",
        "--target_parameters",
        "mlp",
        "norm",
        "--reward_funcs",
        "conciseness_reward",
    ]
    more = ["--chat_template_kwargs", "{enable_thinking: false}", "--max_steps", "1"]
    assert main(train_on(mini, data, *lists, *more)) == 0
    config = settings_of()
    assert (config["stop"], config["target_parameters"]) == (["END", "a b"], ["mlp", "norm"])
    assert config["chat_template_kwargs"] == {"enable_thinking": False}


def test_none_unsets_what_the_file_sets(mini, data):
    config_file(learning_rate=0.5, save_total_limit=1, target_parameters=["mlp"])
    unset = [
        word
        for name in ("learning_rate", "save_total_limit", "target_parameters")
        for word in (f"--{name}", "none")
    ]
    assert main(train_on(mini, data, "--config", "run.yaml", "--max_steps", "1", *unset)) == 0
    config = settings_of()
    assert [
        config[name] for name in ("learning_rate", "save_total_limit", "target_parameters")
    ] == [None, None, None]


@pytest.mark.parametrize("length", [256, 32, 40])
def test_the_runs_own_config_file_reruns_it(length, mini):
    flags = [
        *FLAGS,
        "--max_steps",
        "1",
        "--max_completion_length",
        str(length),
        "--output_dir",
        "first",
    ]
    assert main(["train", "--model_name_or_path", str(mini), "--task", "conciseness", *flags]) == 0
    assert main(["train", "--config", "first/config.yaml", "--output_dir", "second"]) == 0
    assert settings_of("second") | {"output_dir": "first"} == settings_of("first")
    assert [step["rewards"] for step in journal("second")[1:]] == [
        step["rewards"] for step in journal("first")[1:]
    ]


def test_the_reference_page_of_settings_is_up_to_date():
    docs = Path(estune.__file__).parents[2] / "docs"
    page = subprocess.run(
        [sys.executable, docs / "settings_page.py"], capture_output=True, check=True
    )
    assert page.stdout == (docs / "settings.md").read_bytes(), "run `make settings`"
