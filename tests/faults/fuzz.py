"""Fuzz the readers of a model's text and of a journal, guided by the branches each input reaches.

python tests/faults/fuzz.py SECONDS     (ends with status 0 unless something raised)
"""

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["estune.theta.journal", "estune.tasks"]):
    from estune.errors import JournalError
    from estune.tasks.answers import last_boxed
    from estune.tasks.countdown import grade_completion
    from estune.theta.journal import Journal

FOLDER = Path(tempfile.mkdtemp())


def feed(data: bytes) -> None:
    grader, text = data[:1], data[1:]
    if grader == b"j":
        (FOLDER / "journal.jsonl").write_bytes(text)
        try:
            Journal.open(FOLDER)
        except JournalError as error:
            assert "\n" not in str(error)  # noqa: PT017
    else:
        words = text.decode(errors="replace")
        grade = grade_completion(words, [3, 5, 2], Fraction(13))
        assert 0 <= grade.format <= 1
        assert grade.answer in (0, 1)
        last_boxed(words)


if __name__ == "__main__":
    atheris.Setup([sys.argv[0], f"-max_total_time={sys.argv[1]}", "-timeout=10"], feed)
    atheris.Fuzz()
