"""A checkpoint's parameters have the names in its files, and are written back in the same form."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import make_model, make_tokenizer
from safetensors.torch import load_file, save_file

from estune.common.types import ThetaUpdate
from estune.config import ESConfig
from estune.errors import ConfigError, InputError, ModelError
from estune.run.model import Model
from estune.theta.checkpoint import open_checkpoint, resolve
from estune.theta.parameters import layout
from estune.theta.theta import Theta


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def plan(folder):
    return layout(open_checkpoint(folder))


def model(folder, tmp_path, **settings):
    return Model(
        str(folder), ESConfig(output_dir=str(tmp_path / "out"), engine="fake", **settings), None, {}
    )


def logits(folder):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(
            torch.tensor([[3, 5, 7, 9]])
        ).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_theta_is_the_files_values_widened_and_is_written_in_the_files_dtype(tmp_path, dtype):
    folder = make_model(tmp_path / "base", dtype=dtype)
    base = model(folder, tmp_path)
    assert all(theta.dtype == torch.float32 for theta in base.theta.tensors.values())
    base.write(tmp_path / "copy")
    before, after = (
        load_file(folder / "model.safetensors"),
        load_file(tmp_path / "copy" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype
        for name in before
    )
    assert torch.equal(logits(folder), logits(tmp_path / "copy"))


def test_a_checkpoint_of_several_files_keeps_its_files(tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "one")).save_pretrained(
        tmp_path / "many", max_shard_size="20KB"
    )
    make_tokenizer().save_pretrained(tmp_path / "many")
    files = {path.name for path in (tmp_path / "many").glob("*.safetensors*")}
    assert len(files) > 3
    model(tmp_path / "many", tmp_path).write(tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").glob("*.safetensors*")} == files
    for name in files:
        before, after = tmp_path / "many" / name, tmp_path / "copy" / name
        if name.endswith(".json"):
            assert json.loads(before.read_text()) == json.loads(after.read_text())
        else:
            assert load_file(before).keys() == load_file(after).keys()
    assert torch.equal(logits(tmp_path / "many"), logits(tmp_path / "copy"))


def with_index(folder, files):
    """An index beside the weights that names `files`, as a checkpoint of several files has it."""
    index = {"weight_map": {f"weight {i}": file for i, file in enumerate(files)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "file", ["../outside.safetensors", "sub/model.safetensors", "/tmp/model.safetensors", 3, None]
)
def test_an_index_that_names_files_elsewhere_is_refused_since_they_would_be_written_there_too(
    tmp_path, file
):
    folder = make_model(tmp_path / "base")
    (tmp_path / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with_index(folder, [file])
    with pytest.raises(ModelError, match="not an index of weight files"):
        plan(folder)


def test_an_index_that_names_a_file_that_is_not_there_is_refused(tmp_path):
    folder = make_model(tmp_path / "base")
    with_index(folder, ["model.safetensors", "lost.safetensors"])
    with pytest.raises(ModelError, match=r"lost.safetensors: not a whole safetensors file"):
        plan(folder)


def test_a_tied_parameter_counts_once_under_the_name_in_the_file(tiny):
    names = plan(tiny).in_model
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_a_tied_parameter_stored_as_the_output_embedding_keeps_that_name(tmp_path):
    folder = make_model(tmp_path / "base")
    edit(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors.pop("model.embed_tokens.weight")}
        ),
    )
    names = plan(folder).in_model
    assert "lm_head.weight" in names
    assert "model.embed_tokens.weight" not in names


def test_both_names_with_equal_values_are_one_parameter_under_the_input_embeddings(tmp_path):
    folder = make_model(tmp_path / "base")
    edit(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
        ),
    )
    found = plan(folder)
    assert "lm_head.weight" not in found.in_model
    assert found.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    tuned = model(folder, tmp_path)
    tuned.theta.update(ThetaUpdate([1], [0.01], noise="iid", version=0))
    tuned.write(tmp_path / "copy")
    written = load_file(tmp_path / "copy" / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], written["model.embed_tokens.weight"])
    assert torch.equal(written["lm_head.weight"], tuned.theta.tensors["model.embed_tokens.weight"])


def test_both_names_with_different_values_are_refused(tmp_path):
    folder = make_model(tmp_path / "base")
    edit(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
        ),
    )
    with pytest.raises(ModelError, match="tied in the config but differ"):
        plan(folder)


def test_untied_embeddings_are_two_parameters(tmp_path):
    names = plan(make_model(tmp_path / "base", tied=False)).in_model
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= names.keys()


def test_target_parameters_limit_what_is_perturbed_and_kept_in_fp32(tiny, tmp_path):
    tuned = model(tiny, tmp_path, target_parameters=[r"layers\.1\.", "norm"])
    assert set(tuned.theta.tensors) == {
        name for name in plan(tiny).in_model if "layers.1." in name or "norm" in name
    }
    tuned.theta.update(ThetaUpdate([1], [0.01], noise="iid", version=0))
    tuned.write(tmp_path / "copy")
    before, after = (
        load_file(tiny / "model.safetensors"),
        load_file(tmp_path / "copy" / "model.safetensors"),
    )
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(
        tuned.theta.tensors
    )


@pytest.mark.parametrize("patterns", [["nothing_like_it"], ["("]])
def test_target_parameters_that_match_nothing_or_are_no_expression_are_refused(
    tiny, tmp_path, patterns
):
    with pytest.raises(ConfigError, match="target_parameters"):
        model(tiny, tmp_path, target_parameters=patterns)


def test_names_that_lack_the_models_prefix_are_kept_and_mapped(tmp_path):
    """Keep the files' names: GPT-2 on the hub has `wte.weight`, the model `transformer.wte.weight`.

    The files also hold buffers.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    small = GPT2Config(
        vocab_size=64,
        n_positions=64,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
    )
    GPT2LMHeadModel(small).save_pretrained(tmp_path / "gpt2")
    make_tokenizer().save_pretrained(tmp_path / "gpt2")

    def as_on_the_hub(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)

    before = logits(tmp_path / "gpt2")
    edit(tmp_path / "gpt2", as_on_the_hub)
    found = plan(tmp_path / "gpt2").in_model
    assert found["wte.weight"] == "transformer.wte.weight"
    assert "h.0.attn.bias" not in found
    model(tmp_path / "gpt2", tmp_path).write(tmp_path / "copy")
    assert set(load_file(tmp_path / "copy" / "model.safetensors")) == set(
        load_file(tmp_path / "gpt2" / "model.safetensors")
    )
    assert torch.equal(logits(tmp_path / "copy"), before)


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
    }
    BertForMaskedLM(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(
        T5Config(d_model=32, d_ff=32, d_kv=16, num_layers=1, num_heads=2, vocab_size=64)
    ).save_pretrained(tmp_path / "t5")
    for name in ("bert", "t5"):
        with pytest.raises(ModelError, match="no causal language model"):
            plan(tmp_path / name)


def changed_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda f: changed_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
            "quantised",
        ),
        (lambda f: changed_config(f, model_type="no_such_model"), "cannot build"),
        (lambda f: changed_config(f, hidden_size=64), "shape"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot build"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickles"),
        (
            lambda f: torch.save({"a": torch.ones(1)}, f / "model.safetensors"),
            "not a whole safetensors file",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-9]
            ),
            "not a whole safetensors",
        ),
        (
            lambda f: edit(f, lambda t: t.pop("model.norm.weight")),
            r"lack 1 parameters, such as model.norm.weight",
        ),
        (
            lambda f: edit(
                f,
                lambda t: t.update(
                    {"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}
                ),
            ),
            "F8_E4M3",
        ),
        (
            lambda f: edit(
                f, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].double()})
            ),
            "float64",
        ),
    ],
)
def test_a_folder_that_is_no_whole_causal_lm_is_refused(tmp_path, damage, says):
    folder = make_model(tmp_path / "base")
    damage(folder)
    with pytest.raises(ModelError, match=says) as refusal:
        plan(folder)
    assert isinstance(refusal.value, InputError)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    folder = make_model(tmp_path / "base")
    edit(folder, lambda tensors: tensors["model.norm.weight"].fill_(value))
    with pytest.raises(ModelError, match=r"model.norm.weight holds weights"):
        Theta.load(open_checkpoint(folder), plan(folder).targets(None))


def test_where_a_model_is_found(tiny, tmp_path):
    assert resolve(str(tiny)) == tiny
    for missing in (
        str(tmp_path / "none"),
        "./none",
        "no/such/folder",
        "someone/unknown-model",
        str(tmp_path / "none.gguf"),
    ):
        with pytest.raises(ModelError):
            resolve(missing)


def test_a_damaged_gguf_is_refused_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("ESTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(ModelError, match="cannot convert"):
        resolve(str(tmp_path / "m.gguf"))
    assert [path.name for path in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


def test_two_runs_that_begin_at_once_convert_a_gguf_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ESTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    converted = []

    def convert(path, folder):
        time.sleep(0.2)
        converted.append(folder)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr("estune.theta.gguf_conversion._convert", convert)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(resolve, [str(tmp_path / "m.gguf")] * 2)
    assert first == second
    assert (first / "config.json").is_file()
    assert len(converted) == 1


def test_a_theta_that_overflows_the_checkpoints_dtype_is_refused_rather_than_saved_as_infinity(
    tmp_path,
):
    tuned = model(make_model(tmp_path / "base", dtype="float16"), tmp_path)
    tuned.theta.tensors["model.norm.weight"].fill_(70_000.0)
    with pytest.raises(ModelError, match=r"model.norm.weight overflows torch.float16"):
        tuned.write(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
