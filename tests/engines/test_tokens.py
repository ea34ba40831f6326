"""Stop strings, end tokens, padding, and the tokens around a prompt."""

import json
import logging

import pytest
import torch
from helpers import make_model, make_tokenizer

from estune import ESConfig
from estune.engines.stops import Stopped, Stops, decoded
from estune.engines.tokens import Tokenizer
from estune.engines.transformers import open_engine
from estune.errors import ConfigError, DataError, ModelError
from estune.theta.checkpoint import open_checkpoint
from estune.theta.parameters import layout


@pytest.fixture
def tokenizer():
    """Of words, of which <turn> is special but named nowhere as an end."""
    made = make_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    return made


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def completion(tokenizer, text, folder, budget=99, ends=frozenset({1}), **settings):
    return Tokenizer(folder, ESConfig(**settings), tokenizer).completion(
        ids(tokenizer, text), ends, budget
    )


# stop strings


@pytest.mark.parametrize(
    ("stop", "text", "kept"),
    [
        (["<turn>"], "the sky <turn> user what", "the sky"),
        (["<turn>"], "<turn> the sky", ""),
        (["y <turn>"], "the sky <turn> what", "the sk"),
        (["blue"], "the sky is blue <turn> what", "the sky is "),
        (["what", "<turn>"], "the sky <turn> what", "the sky"),
        (["<turn>", "sky"], "the sky <turn> what", "the "),
        (["<turn>", "<turn>"], "the sky <turn> what", "the sky"),
        (["sky is"], "the sky is blue", "the "),
        (["y i"], "the sky is blue", "the sk"),
        ([" "], "the sky", "the"),
        (["sky <turn>"], "the sky <turn> what", "the "),
        (["nowhere to be found in so few words"], "the sky", "the sky"),
    ],
)
def test_text_ends_before_the_first_stop_string_special_token_or_not(
    tokenizer, tmp_path, stop, text, kept
):
    assert completion(tokenizer, text, tmp_path, stop=stop).text == kept


def test_token_ids_end_with_the_token_that_completes_the_stop_string(tokenizer, tmp_path):
    cut = completion(tokenizer, "the sky <turn> what <pad> <pad>", tmp_path, stop=["<turn>"])
    assert cut.ids == ids(tokenizer, "the sky <turn>")
    assert not cut.clipped


def test_a_special_token_that_is_no_stop_string_is_left_out_of_the_text(tokenizer, tmp_path):
    assert completion(tokenizer, "the sky <turn> is blue", tmp_path).text == "the sky is blue"


def test_generation_stops_at_a_special_token_and_remembers_it_behind_padding(tokenizer):
    criterion = Stopped([Stops(tokenizer, ["<turn>"])] * 2, [[], []], 1)
    rows = [ids(tokenizer, text) for text in ("cat the sky <turn>", "cat the sky is")]
    assert criterion(torch.tensor(rows), None).tolist() == [True, False]
    later = [[*row, *[0] * 30] for row in rows]
    assert criterion(torch.tensor(later), None).tolist() == [True, False]
    assert criterion.rows.tolist() == [True, False]


@pytest.mark.parametrize("given", [[""], "", ["cat", ""]])
def test_an_empty_stop_string_is_refused(given):
    with pytest.raises(ConfigError, match="stop: an empty string"):
        ESConfig(stop=given)


def test_a_stop_string_inside_of_bytes_that_make_one_letter_only_together():
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Inner(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    stops, new = Stops(tokenizer, ["é"]), ids(tokenizer, "caf\u00e9 noir")
    assert len(new) == 10
    assert stops.first(new) == 5
    assert stops.before(new[:5]) == "caf"


# ends and padding


def test_padding_is_no_end(tokenizer, tmp_path):
    kept = completion(tokenizer, "the <pad> sky <eos> cat", tmp_path)
    assert (kept.text, kept.ids) == ("the sky", ids(tokenizer, "the <pad> sky"))


def test_ends_are_all_that_the_files_name(tmp_path):
    folder = make_model(tmp_path, eos_token_id=[1, 7])
    file = folder / "generation_config.json"
    file.write_text(
        json.dumps({"eos_token_id": 9, "pad_token_id": 0, "top_p": 7, "no_such_field": [1]})
    )
    assert Tokenizer(folder, ESConfig()).ends() == {1, 7, 9}
    file.unlink()
    assert Tokenizer(folder, ESConfig()).ends() == {1, 7}


@pytest.mark.parametrize("named", [None, -1, []])
def test_files_that_name_no_end_leave_that_of_the_tokenizer(tmp_path, named):
    folder = make_model(tmp_path)
    for file in ("config.json", "generation_config.json"):
        (folder / file).write_text(
            json.dumps(json.loads((folder / file).read_text()) | {"eos_token_id": named})
        )
    assert Tokenizer(folder, ESConfig()).ends() == {1}


@pytest.mark.parametrize("damage", ["{", "[]", '{"do_sample": 3'])
def test_a_generation_config_that_cannot_be_read_is_named(tmp_path, damage):
    (make_model(tmp_path) / "generation_config.json").write_text(damage)
    with pytest.raises(ModelError, match="generation_config.json: cannot be read"):
        Tokenizer(tmp_path, ESConfig())


def test_a_padding_token_that_the_model_lacks_is_replaced_by_one_that_it_has(tmp_path):
    folder = make_model(tmp_path)
    wanted = answers(folder)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"w{number}" for number in range(40)])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    assert Tokenizer(folder, ESConfig()).padding(64) == 1
    assert answers(folder) == wanted


@pytest.mark.parametrize("missing", ["pad_token", "eos_token"])
def test_tokenizers_without_padding_or_end_serve(tmp_path, missing):
    folder = make_model(tmp_path, pad_token_id=None)
    tokenizer = make_tokenizer()
    setattr(tokenizer, missing, None)
    tokenizer.save_pretrained(folder)
    assert all(answers(folder))


def answers(folder):
    known = layout(open_checkpoint(folder))
    engine = open_engine(folder, known, ESConfig(), "cpu", torch.float32)
    return [
        one.ids for one in engine.generate(["cat", "where is the red dog"], max_completion_length=5)
    ]


# prompts


def test_tokens_that_are_appended_to_a_plain_prompt_are_logged_once_and_stay(tmp_path, caplog):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 2), ("<eos>", 1)]
    )
    one = Tokenizer(tmp_path, ESConfig(), tokenizer)
    assert one.encode(["cat", "dog"]) == [
        [2, *ids(make_tokenizer(), word), 1] for word in ("cat", "dog")
    ]
    assert [record.message.split(" to every")[0] for record in caplog.records] == [
        "the model's tokenizer appends <eos>"
    ]


def test_tokens_before_a_plain_prompt_are_usual_and_not_logged(tmp_path, caplog):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", 2)]
    )
    Tokenizer(tmp_path, ESConfig(), tokenizer).encode(["cat"])
    assert not caplog.records


def test_a_token_that_the_model_lacks_is_refused_by_its_row(tmp_path):
    with pytest.raises(DataError, match="row 1: token 99 of .* is not one of the model's 64"):
        Tokenizer(tmp_path, ESConfig(), make_tokenizer()).encode(["cat", [4, 99]], 64)


def test_tokens_that_the_tokenizer_lacks_have_no_text():
    class Strict:
        def decode(self, tokens, skip_special_tokens):
            return " ".join("abc"[token] for token in tokens)

        def convert_ids_to_tokens(self, token):
            return "abc"[token]

    assert decoded(Strict(), [0, 7, 2]) == "a c"


def test_a_processor_serves_with_its_tokenizer(tmp_path):
    class Processor:
        tokenizer = make_tokenizer()

    assert Tokenizer(tmp_path, ESConfig(), Processor()).encode(["cat"]) == [
        ids(make_tokenizer(), "cat")
    ]


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.WARNING, "estune")
