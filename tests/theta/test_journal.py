"""The journal and the base model give θ of every step, and damage to the journal is detected."""

import dataclasses
import hashlib
import json
import math
import struct

import numpy as np
import pytest
from helpers import header, lines_of, make_model, signed, step

from estune.errors import JournalError
from estune.noise import gaussian
from estune.theta.checkpoint import open_checkpoint
from estune.theta.journal import Journal, exists
from estune.theta.theta import Theta

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture
def journal(tmp_path):
    made = Journal.create(tmp_path, header())
    for number in (1, 2, 3):
        made.append(step(number))
    return made


@pytest.fixture
def run(make_trainer):
    """A finished run's folder."""
    trainer = make_trainer(save_steps=3)
    trainer.train()
    return trainer.folder.path


# What stands in it


def test_a_line_about_the_run_then_one_line_a_step(run, mini):
    first, *steps = lines_of(run)
    assert first["format"] == 2
    assert len(bytes.fromhex(first["run"])) == 16
    assert first["model"] == str(mini)
    assert len(bytes.fromhex(first["digest"])) == 16
    assert first["config"]["sigma"] == 0.02
    assert first["config"]["population_size"] == 4
    assert [line["step"] for line in steps] == [1, 2, 3, 4]


def test_each_step_has_the_fields_of_the_contract(run):
    for line in lines_of(run)[1:]:
        assert len(line["seeds"]) == len(set(line["seeds"])) == 4
        assert all(isinstance(seed, int) and 0 <= seed < 2**64 for seed in line["seeds"])
        assert len(line["coefficients"]) == len(line["rewards"]) == 4
        assert (line["sigma"], line["noise"]) == (0.02, "iid")


def test_steps_that_save_a_checkpoint_carry_a_digest(run):
    assert [("digest" in line) for line in lines_of(run)[1:]] == [False, False, True, True]


def test_coefficients_are_fp32_numbers_exact_in_json(run):
    for line in lines_of(run)[1:]:
        assert any(line["coefficients"])
        for coefficient in line["coefficients"]:
            assert float(np.float32(coefficient)) == coefficient


def test_every_fp32_number_survives_the_file(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, 2000, dtype=np.uint32).view(np.float32)
    values = [float(x) for x in bits[np.isfinite(bits)]] + [
        0.0,
        -0.0,
        float(np.float32(1e-45)),
        float(np.finfo(np.float32).max),
    ]
    Journal.create(tmp_path, header()).append(
        step(1, seeds=list(range(len(values))), coefficients=values)
    )
    read = Journal.open(tmp_path).steps[0].coefficients
    assert [struct.pack("<f", x) for x in read] == [struct.pack("<f", x) for x in values]


def test_seeds_of_64_bits_survive_the_file(journal):
    assert Journal.open(journal.path.parent).steps[0].seeds == [1, 2**64 - 1]


def test_each_line_carries_a_checksum_of_the_rest(run):
    for line in (run / "journal.jsonl").read_text().splitlines(keepends=True):
        record = json.loads(line)
        checksum = record.pop("checksum")
        assert len(bytes.fromhex(checksum)) == 8
        assert signed(record) == line


def test_what_was_written_is_read_again(journal):
    read = Journal.open(journal.path.parent)
    assert read.header == header()
    assert read.steps == [step(1), step(2), step(3)] == journal.steps
    assert read.last == 3


def test_nan_is_refused_rather_than_written(journal):
    before = journal.path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        journal.append(step(4, rewards=[math.nan, 1.0]))
    assert journal.path.read_bytes() == before


# A kill tears the last line


def test_a_last_line_cut_anywhere_is_dropped(tmp_path, journal):
    data = journal.path.read_bytes()
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(data)):
        journal.path.write_bytes(data[:end])
        assert Journal.open(tmp_path).last == 2, end
        assert exists(tmp_path)


def test_a_cut_line_is_taken_off_the_file_only_when_resuming(tmp_path, journal):
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:-5])
    Journal.open(tmp_path)
    assert journal.path.read_bytes() == data[:-5]
    repaired = Journal.open(tmp_path, repair=True)
    assert journal.path.read_bytes() == data[: data.rstrip(b"\n").rfind(b"\n") + 1]
    repaired.append(step(3))
    assert journal.path.read_bytes() == data


def test_a_last_line_whose_pages_never_reached_the_disk_is_dropped(tmp_path, journal):
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:-40] + b"\0" * 40)
    assert Journal.open(tmp_path).last == 2
    journal.path.write_bytes(data[:-41] + b"\0" * 40 + b"\n")
    assert Journal.open(tmp_path).last == 2


def test_a_torn_first_line_means_that_nothing_was_saved(tmp_path):
    whole = Journal.create(tmp_path, header()).path.read_bytes()
    for end in range(len(whole)):
        (tmp_path / "journal.jsonl").write_bytes(whole[:end])
        assert not exists(tmp_path), end
    with pytest.raises(JournalError, match="no whole line"):
        Journal.open(tmp_path)


def test_no_journal_means_that_nothing_was_saved(tmp_path):
    assert not exists(tmp_path)
    with pytest.raises(JournalError, match="is .* the folder of a run"):
        Journal.open(tmp_path)


# Damage elsewhere


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_damaged_line_elsewhere_is_an_error_that_names_it(tmp_path, journal, number):
    lines = journal.path.read_bytes().splitlines(keepends=True)
    for at in (0, 10, len(lines[number - 1]) // 2, len(lines[number - 1]) - 3):
        damaged = bytearray(lines[number - 1])
        damaged[at] ^= 1
        journal.path.write_bytes(b"".join([*lines[: number - 1], bytes(damaged), *lines[number:]]))
        with pytest.raises(JournalError, match=f"line {number} is damaged"):
            Journal.open(tmp_path)


def test_every_flipped_bit_of_a_line_is_noticed(tmp_path, journal):
    lines = journal.path.read_bytes().splitlines(keepends=True)
    for at in range(len(lines[1]) - 1):
        damaged = bytearray(lines[1])
        damaged[at] ^= 1 << at % 8
        journal.path.write_bytes(b"".join([lines[0], bytes(damaged), *lines[2:]]))
        with pytest.raises(
            JournalError, match="line [23]"
        ):  # a flip may make a line end, so that two lines are wrong
            Journal.open(tmp_path)


def test_an_empty_line_between_two_is_damage(tmp_path, journal):
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join([*lines[:2], b"\n", *lines[2:]]))
    with pytest.raises(JournalError, match="line 3 is damaged"):
        Journal.open(tmp_path)


def rewritten(journal, number, **changes):
    """The journal with changed fields in one line, the checksum being right."""
    lines = journal.path.read_text().splitlines(keepends=True)
    record = json.loads(lines[number - 1])
    del record["checksum"]
    record = {name: value for name, value in (record | changes).items() if value is not ...}
    lines[number - 1] = signed(record)
    journal.path.write_text("".join(lines))
    return journal.path.parent


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_field_that_is_not_known_is_refused(journal, number):
    folder = rewritten(journal, number, momentum=0.9)
    with pytest.raises(JournalError, match=f"line {number} has a field 'momentum'"):
        Journal.open(folder)


@pytest.mark.parametrize("number", [1, 3, 4])
def test_whatever_stands_in_the_notes_is_accepted(journal, number):
    assert (
        Journal.open(
            rewritten(journal, number, notes={"weather": "fair", "deep": {"er": [None]}})
        ).last
        == 3
    )


@pytest.mark.parametrize("name", ["seeds", "coefficients", "rewards", "sigma", "noise", "step"])
def test_a_line_that_lacks_a_field_is_refused(journal, name):
    with pytest.raises(JournalError, match="line 3 lacks"):
        Journal.open(rewritten(journal, 3, **{name: ...}))


@pytest.mark.parametrize("wrong", [1, 3, 0, 7])
def test_steps_out_of_order_are_refused(journal, wrong):
    with pytest.raises(JournalError, match=f"line 3 is of step {wrong}, where step 2 belongs"):
        Journal.open(rewritten(journal, 3, step=wrong))


@pytest.mark.parametrize("coefficients", [[0.5], [0.5, 0.5, 0.5]])
def test_other_than_one_coefficient_a_seed_is_refused(journal, coefficients):
    with pytest.raises(
        JournalError, match=f"line 3 has {len(coefficients)} coefficients for 2 seeds"
    ):
        Journal.open(rewritten(journal, 3, coefficients=coefficients))


def test_no_coefficients_at_all_are_a_step_without_an_update(journal):
    assert Journal.open(rewritten(journal, 3, coefficients=[])).steps[1].coefficients == []


@pytest.mark.parametrize("version", [0, 3, "1", None, True])
def test_another_format_is_refused(journal, version):
    with pytest.raises(JournalError, match="reads formats 1 and 2|line 1 has a wrong format"):
        Journal.open(rewritten(journal, 1, format=version))


def test_a_newer_format_is_said_before_its_steps_are_judged(journal):
    rewritten(journal, 2, momentum=0.9)
    with pytest.raises(JournalError, match="reads formats 1 and 2"):
        Journal.open(rewritten(journal, 1, format=3, momentum=0.9))


def test_lines_that_are_json_but_no_record_are_refused(tmp_path, journal):
    lines = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join([lines[0], "[1, 2]\n", *lines[2:]]))
    with pytest.raises(JournalError, match="line 2 is damaged"):
        Journal.open(tmp_path)


# θ from base and journal alone, by the contract: no code of the product but its noise


def tensors_of(folder):
    """Map each tensor's name to (dtype, fp32 values, bytes), read with struct and numpy alone."""
    data = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    read = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        raw = data[8 + size + start : 8 + size + end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(
                np.float32
            )
        read[name] = entry["dtype"], values.reshape(entry["shape"]).copy(), raw
    return read


def rounded(values, dtype):
    """The bytes of fp32 `values` in `dtype`, to nearest, ties to even."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def digest_of(theta):
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(theta):
        whole.update(
            name.encode() + b"\0" + hashlib.blake2b(theta[name].tobytes(), digest_size=16).digest()
        )
    return whole.hexdigest()


def coefficients_of(line, config):
    """α/N · R̃ₙ in double, then fp32."""
    rewards = np.array(line["rewards"], np.float64)
    shaped = (rewards - rewards.mean()) / rewards.std()
    if config["antithetic"]:
        shaped = shaped[0::2] - shaped[1::2]
    alpha = config["sigma"] / 2 if config["learning_rate"] is None else config["learning_rate"]
    return (alpha / len(rewards) * shaped).astype(np.float32)


KINDS = {
    "iid": {},
    "correlated": {"noise": "correlated"},
    "antithetic": {"antithetic": True},
    "targets": {"target_parameters": ["q_proj", "norm"]},
    "all": {
        "noise": "correlated",
        "antithetic": True,
        "learning_rate": 0.03,
        "target_parameters": ["mlp", "embed"],
    },
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_base_and_journal_give_every_checkpoint_to_the_bit(make_trainer, tmp_path, kind, dtype):
    base = make_model(tmp_path / "base", dtype=dtype, tied=kind != "all", **SMALL)
    make_trainer(base, save_steps=1, **KINDS[kind]).train()
    first, *steps = lines_of(tmp_path / "run")
    before = tensors_of(base)
    tuned = [n for n in before if any(p in n for p in KINDS[kind].get("target_parameters", [""]))]
    theta = {name: before[name][1] for name in tuned}
    assert len(theta) < len(before) or "target_parameters" not in KINDS[kind]
    assert first["digest"] == digest_of(theta)
    for line in steps:
        assert [np.float32(c) for c in line["coefficients"]] == list(
            coefficients_of(line, first["config"])
        )
        for name, values in theta.items():
            delta = np.zeros_like(values)
            for seed, coefficient in zip(line["seeds"], line["coefficients"], strict=True):
                noise = gaussian(
                    seed,
                    name,
                    values.shape,
                    correlated=line["noise"] == "correlated",
                    backend="numpy",
                )
                delta += np.float32(coefficient) * noise
            values += delta
        assert line["digest"] == digest_of(theta)
        saved = tensors_of(tmp_path / "run" / f"checkpoint-{line['step']}")
        assert set(saved) == set(before)
        for name, (stored, _, raw) in saved.items():
            assert stored == before[name][0]
            assert raw == (rounded(theta[name], stored) if name in theta else before[name][2]), name


# Replay


@pytest.fixture
def theta(mini):
    checkpoint = open_checkpoint(mini)
    return Theta.load(checkpoint, list(checkpoint.tensors))


def test_replay_yields_each_step_and_ends_there(run, theta):
    journal = Journal.open(run)
    assert list(journal.replay(theta, 3)) == [1, 2, 3]
    assert theta.version == 3
    assert theta.digest() == journal.steps[2].digest
    assert list(journal.replay(theta, 4)) == [4]
    assert list(journal.replay(theta, 4)) == []


def test_replay_beyond_the_last_step_is_refused(run, theta):
    with pytest.raises(JournalError, match="has 4 steps, so step 5"):
        list(Journal.open(run).replay(theta, 5))


def test_replay_from_another_base_model_is_refused(run, theta):
    theta.tensors["model.norm.weight"][0] += 1
    with pytest.raises(JournalError, match="base model is not the one"):
        list(Journal.open(run).replay(theta, 1))


def test_replay_notices_a_step_that_gives_another_theta(run, theta):
    journal = Journal.open(run)
    journal.steps[1] = dataclasses.replace(journal.steps[1], seeds=[1, 2, 3, 4])
    with pytest.raises(JournalError, match="θ at step 3 is not what"):
        list(journal.replay(theta, 4))
