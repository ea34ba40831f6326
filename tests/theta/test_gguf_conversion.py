"""What a .gguf says about the tokens around a plain prompt is honoured when it is converted."""

import pytest
from helpers import make_tokenizer

from estune.theta.gguf_conversion import adds, set_special_tokens


@pytest.fixture
def gguf(tmp_path):
    """A file that says which tokens go around a prompt."""
    from gguf import GGUFWriter

    def write(special=None, **added):
        writer = GGUFWriter(tmp_path / "model.gguf", "llama")
        writer.add_string("tokenizer.ggml.model", "gpt2")
        writer.add_array(
            "tokenizer.ggml.tokens", ["tokenizer.ggml.add_bos_token", "cat"]
        )  # a token of such a name is no entry
        for token, value in added.items():
            writer.add_bool(f"tokenizer.ggml.add_{token}_token", value)
        for name, number in (special or {}).items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "model.gguf"

    return write


def tokenizer():
    made = make_tokenizer()
    made.bos_token = "<unk>"
    return made


CAT = make_tokenizer()("cat")["input_ids"]


@pytest.mark.parametrize(
    ("added", "ids"),
    [
        ({}, CAT),
        ({"bos": False}, CAT),
        ({"bos": True}, [2, *CAT]),
        ({"bos": True, "eos": True}, [2, *CAT, 1]),
        ({"eos": True}, [*CAT, 1]),
        ({"bos": True, "eos": False}, [2, *CAT]),
    ],
)
def test_a_prompt_gets_the_tokens_that_the_file_asks_for(gguf, tmp_path, added, ids):
    from transformers import AutoTokenizer

    made = tokenizer()
    set_special_tokens(gguf(**added), made)
    made.save_pretrained(tmp_path / "saved")
    for one in (made, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert one("cat")["input_ids"] == ids
        assert one("cat", add_special_tokens=False)["input_ids"] == CAT


def test_special_tokens_are_those_that_the_file_names_by_their_numbers(gguf):
    made = tokenizer()
    set_special_tokens(gguf(special={"eos": 3, "padding": 1, "bos": 10_000}), made)
    assert (made.eos_token_id, made.pad_token_id, made.bos_token) == (3, 1, "<unk>"), (
        "a token beyond the vocabulary is passed over"
    )


def test_a_token_that_transformers_adds_and_the_file_does_not_want_goes(gguf):
    made = tokenizer()
    set_special_tokens(gguf(bos=True), made)
    set_special_tokens(gguf(bos=False), made)
    assert made("cat")["input_ids"] == CAT


def test_a_file_that_says_nothing_changes_nothing(gguf, tmp_path):
    assert adds(gguf(), "bos") is None
    assert adds(gguf(bos=True), "bos") is True
    assert adds(gguf(bos=False), "bos") is False
    (tmp_path / "empty.gguf").touch()
    assert adds(tmp_path / "empty.gguf", "bos") is None
