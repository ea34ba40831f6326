"""A checkpoint has every file of its base model besides the weights, whatever the file's name.

Its only weights are its own.
"""

import json
import shutil
from pathlib import Path

import pytest
from helpers import folder_of

from estune.errors import ModelError
from estune.theta.checkpoint import open_checkpoint, resolve
from estune.theta.companions import companions

GO_ALONG = [
    *(
        "qwen.tiktoken",
        "tokenizer.model",
        "sentencepiece.bpe.model",
        "vocab.bpe",
        "merges.txt",
        "vocab.bin",
        "tokenizer.pkl",
        "LICENSE",
    ),
    *(
        "README.md",
        "modeling_own.py",
        "own/bpe.vocab",
        "own/deep/er.py",
        "params.yaml",
        "a b[1]*.dict",
        "chat_template.jinja",
        "noext",
    ),
]
STAY_BEHIND = [
    *(
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model-q4.gguf",
        "consolidated.00.pth",
        "tf_model.h5",
        "optimizer.pt",
    ),
    *(
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "other.safetensors",
        "tokenizer.safetensors",
        "training_args.bin",
        "trainer_state.json",
    ),
    *(".gitattributes", ".git/config", "checkpoint-5/config.json", "runs/a/events"),
    *("out/journal.jsonl", "out/config.yaml"),
]


def filled(folder: Path) -> Path:
    for name in [*GO_ALONG, *STAY_BEHIND]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_all_but_weights_and_what_belongs_to_a_run_goes_along(tmp_path):
    assert {str(path) for path in companions(filled(tmp_path))} == set(GO_ALONG)


def test_a_link_that_leads_nowhere_is_passed_over(tmp_path):
    (tmp_path / "config.json").symlink_to(tmp_path / "gone")
    assert companions(tmp_path) == []


def test_a_checkpoint_has_what_its_base_has(make_trainer, mini, tmp_path):
    base = filled(shutil.copytree(mini, tmp_path / "base"))
    trainer = make_trainer(model=base)
    trainer.train()
    checkpoint = folder_of(trainer) / "checkpoint-4"
    usual = {path.name for path in mini.iterdir() if not path.name.startswith(".")}
    assert files_of(checkpoint) == {*GO_ALONG, *usual, "trainer_state.json", "estune.json"}
    assert all((checkpoint / name).read_text() == name for name in GO_ALONG if name not in usual)


def test_a_base_that_is_gone_when_a_checkpoint_is_written_is_one_line(make_trainer, mini, tmp_path):
    base, elsewhere = shutil.copytree(mini, tmp_path / "base"), tmp_path / "elsewhere"
    moves = [elsewhere]

    def reward(completions, **columns):
        if moves:
            base.rename(moves.pop())
        return [float(len(text)) for text in completions]

    with pytest.raises(
        ModelError, match="cannot be copied .* put the base model back and resume the run"
    ):
        make_trainer(model=base, reward_funcs=reward).train()
    elsewhere.rename(base)
    assert (
        make_trainer(model=base, reward_funcs=reward).train(resume_from_checkpoint=True).global_step
        == 4
    )


def test_the_index_of_shards_goes_along(mini, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(mini).save_pretrained(tmp_path, max_shard_size="2KB")
    assert Path("model.safetensors.index.json") in companions(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"another set")
    with pytest.raises(
        ModelError, match=r"has two sets of weights, model.safetensors and the \d files of"
    ):
        open_checkpoint(tmp_path)


def test_an_index_that_names_the_single_file_is_one_set_of_weights(mini, tmp_path):
    folder = shutil.copytree(mini, tmp_path / "one")
    names = open_checkpoint(folder).tensors
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")})
    )
    assert open_checkpoint(folder).tensors == names


@pytest.mark.parametrize(("trusted", "weights"), [(True, True), (False, True), (False, False)])
def test_of_the_hub_all_is_fetched_but_other_formats_and_code_that_is_not_trusted(
    trusted, weights, tmp_path, monkeypatch
):
    from huggingface_hub.utils import filter_repo_objects

    def download(model, revision, ignore_patterns):
        offered = [*GO_ALONG, *STAY_BEHIND, "model.safetensors"]
        for name in filter_repo_objects(offered, ignore_patterns=ignore_patterns):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    fetched = files_of(resolve("someone/model", trust_remote_code=trusted, weights=weights))
    assert {"qwen.tiktoken", "own/bpe.vocab", "LICENSE", "tokenizer.model"} <= fetched
    assert ("model.safetensors" in fetched) == weights
    assert ("modeling_own.py" in fetched) == trusted
    assert (
        not {"pytorch_model.bin", "consolidated.00.pth", "onnx/model.onnx", "model-q4.gguf"}
        & fetched
    )


def test_the_base_of_a_model_given_as_an_object_has_the_files_of_where_it_was_loaded_from(
    make_trainer, mini, tmp_path
):
    from transformers import AutoModelForCausalLM

    folder = filled(shutil.copytree(mini, tmp_path / "own"))
    trainer = make_trainer(model=AutoModelForCausalLM.from_pretrained(folder))
    assert set(GO_ALONG) <= files_of(folder_of(trainer) / "base")
    assert "model.safetensors.index.json" not in files_of(folder_of(trainer) / "base")
