"""A journal's lines belong to one run, in one order.

The message names the line at which one was exchanged, repeated, removed, edited or mixed in.
"""

import hashlib
import json
import shutil

import pytest
from helpers import header, lines_of, short, signed, step, written

from estune.errors import JournalError
from estune.theta.journal import Journal


@pytest.fixture
def folder(make_trainer):
    """The folder of a run of four steps."""
    trainer = make_trainer()
    trainer.train()
    return trainer.folder.path


@pytest.fixture
def other(make_trainer, tmp_path):
    """A second run of the same settings: only its name and its timings differ."""
    trainer = make_trainer(output_dir=str(tmp_path / "other"))
    trainer.train()
    return trainer.folder.path


def raw(folder):
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


def refused(folder, lines):
    """The message with which a journal of these lines is refused."""
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(JournalError) as caught:
        Journal.open(folder)
    return str(caught.value)


def test_each_line_has_a_digest_of_the_one_before_and_of_itself(folder):
    assert b"".join(raw(folder)).decode() == "".join(written(lines_of(folder)))


def test_no_two_runs_have_the_same_name(folder, other):
    assert lines_of(folder)[0]["run"] != lines_of(other)[0]["run"]


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_a_line_of_another_run_is_named_though_its_step_and_seeds_are_right(folder, other, number):
    ours, theirs = raw(folder), raw(other)
    ours[number - 1] = theirs[number - 1]
    assert f"line {number} does not follow from line {number - 1}" in refused(folder, ours)


def test_lines_of_another_run_behind_our_first_are_named(folder, other):
    assert "line 2 does not follow from line 1" in refused(folder, raw(folder)[:1] + raw(other)[1:])


def test_an_exchanged_a_repeated_and_a_removed_line_are_named(folder):
    lines = raw(folder)
    assert "line 3 is of step 3, where step 2 belongs" in refused(
        folder, [*lines[:2], lines[3], lines[2], lines[4]]
    )
    assert "line 4 is of step 2, where step 3 belongs" in refused(folder, [*lines[:3], *lines[2:]])
    assert "line 3 is of step 3, where step 2 belongs" in refused(folder, [*lines[:2], *lines[3:]])


def test_an_edited_first_line_shows_in_the_second(folder):
    first, *rest = raw(folder)
    edited = signed(lines_of_bytes([first])[0] | {"notes": {"edited": True}}).encode()
    assert "line 2 does not follow from line 1" in refused(folder, [edited, *rest])


def lines_of_bytes(lines):
    records = [json.loads(line) for line in lines]
    return [
        {name: value for name, value in record.items() if name != "checksum"} for record in records
    ]


@pytest.mark.parametrize("number", [2, 4, 5])
def test_an_edited_line_is_named_itself_though_its_checksum_is_right(folder, number):
    lines = raw(folder)
    record = lines_of_bytes([lines[number - 1]])[0]
    record["coefficients"][0] += 1.0
    lines[number - 1] = signed(record).encode()
    assert f"line {number} does not follow from line {number - 1}" in refused(folder, lines)


def test_a_renumbered_line_is_named(folder):
    lines = raw(folder)
    record = lines_of_bytes([lines[3]])[0] | {"step": 2}
    assert "line 3 does not follow from line 2" in refused(
        folder, [*lines[:2], signed(record).encode(), *lines[3:]]
    )


def test_a_foreign_last_line_is_refused_and_not_taken_for_a_torn_one(folder, other, make_trainer):
    lines = [*raw(folder)[:4], raw(other)[4]]
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match="line 5 does not follow from line 4"):
        make_trainer(max_steps=6).train(resume_from_checkpoint=True)
    assert raw(folder) == lines


def test_a_line_without_a_link_is_refused(folder):
    lines = raw(folder)
    record = lines_of_bytes([lines[2]])[0]
    del record["chain"]
    lines[2] = signed(record).encode()
    assert "line 3 does not follow from line 2" in refused(folder, lines)


def test_a_header_that_does_not_name_its_run_is_refused(folder):
    records = lines_of(folder)
    del records[0]["run"]
    assert "line 1 lacks a field (run)" in refused(
        folder, [line.encode() for line in written(records)]
    )


def test_a_resumed_run_goes_on_with_the_chain(folder, make_trainer):
    lines = raw(folder)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:-9])
    make_trainer(max_steps=6).train(resume_from_checkpoint=True)
    assert Journal.open(folder).last == 6
    assert raw(folder)[:3] == lines[:3]


# Seeds follow from the run's seed, which tells foreign lines in journals of any format


@pytest.mark.parametrize("version", [1, 2])
def test_a_line_of_another_seed_is_named(folder, make_trainer, tmp_path, version):
    make_trainer(output_dir=str(tmp_path / "seed 9"), seed=9).train()
    ours, theirs = lines_of(folder), lines_of(tmp_path / "seed 9")
    records = [ours[0] | {"format": version}, *ours[1:3], theirs[3], *ours[4:]]
    assert "line 4 has seeds that do not follow from the run's seed, 42" in refused(
        folder, as_lines(records, version)
    )
    assert "line 2 has seeds" in refused(
        folder, as_lines([ours[0] | {"format": version}, *theirs[1:]], version)
    )


def as_lines(records, version):
    if version == 1:
        plain = [
            {
                name: value
                for name, value in record.items()
                if name not in ("run", "chain", "checksum")
            }
            for record in records
        ]
        return [signed(record).encode() for record in plain]
    return [line.encode() for line in written(records)]


@pytest.mark.parametrize(
    "settings",
    [{"antithetic": True}, {"noise": "correlated"}, {"learning_rate": "auto"}, {"batch_size": 1}],
)
def test_the_seeds_of_every_kind_of_run_follow_from_its_seed(make_trainer, settings):
    trainer = make_trainer(seed=7, **settings)
    trainer.train()
    assert Journal.open(trainer.folder.path).last == 4


# A journal is data, whoever wrote it


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "2"),
        ("seeds", [1, -1]),
        ("seeds", [1, 2**64]),
        ("seeds", "12"),
        ("coefficients", ["0.1", "0.2"]),
        ("coefficients", [float("inf"), 0.5]),
        ("rewards", [float("nan"), 1.0]),
        ("rewards", None),
        ("sigma", None),
        ("noise", "loud"),
        ("decay", [1]),
        ("digest", 7),
        ("control", []),
        ("notes", "none"),
        ("task_rewards", {"a": "b"}),
    ],
)
def test_a_value_of_a_wrong_kind_is_named_with_its_line(tmp_path, name, value):
    made = Journal.create(tmp_path, header(format=2, run="11" * 16))
    made.append(step(1))
    records = [*lines_of(tmp_path), lines_of(tmp_path)[1] | {"step": 2, name: value}]
    message = refused(tmp_path, [line.encode() for line in written(records)])
    assert f"line 3 has a wrong {name}" in message
    assert "\n" not in message


@pytest.mark.parametrize("body", ["{" + '"a": ' + "[" * 100_000, '{"step": ' + "9" * 5000 + "}"])
def test_what_json_cannot_read_is_damage_though_it_was_signed(tmp_path, body):
    first = raw_header(tmp_path)
    checksum = hashlib.blake2b(body.encode(), digest_size=8).hexdigest()
    line = f'{body[:-1]}, "checksum": "{checksum}"}}\n'
    assert "line 2 is damaged" in refused(tmp_path, [first, line.encode(), first])


def raw_header(folder):
    Journal.create(folder, header())
    return raw(folder)[0]


def test_a_foreign_journal_is_neither_resumed_nor_changed(folder, make_trainer, tmp_path):
    shutil.copytree(folder, tmp_path / "mixed")
    make_trainer(output_dir=str(tmp_path / "chance"), reward_funcs=longest).train()
    lines = [*raw(folder)[:3], *raw(tmp_path / "chance")[3:]]
    (tmp_path / "mixed" / "journal.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match="line 4 does not follow from line 3"):
        make_trainer(output_dir=str(tmp_path / "mixed"), max_steps=6).train(
            resume_from_checkpoint=True
        )
    assert raw(tmp_path / "mixed") == lines


def longest(completions, target, **columns):
    return [-reward for reward in short(completions, target)]


longest.__name__ = "short"
