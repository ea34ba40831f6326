"""The exceptions that estune raises on purpose. All derive from `EstuneError`.

Most also derive from a standard exception, so that code that does not know estune can catch them.
An `InputError` is one that the user can fix: the command line prints it as one line and exits with
status 2.
"""

_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]  # C0 without \n and \t, DEL, C1
_DIRECTIONS = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x2070)]
_SEPARATORS = [0x2028, 0x2029]  # Unicode's line separator and paragraph separator
_SURROGATES = range(0xD800, 0xE000)  # half a character, or an undecodable byte of a file name
_TABLE: dict[int, str] = {
    **dict.fromkeys([*_CONTROLS, *_DIRECTIONS], ""),
    **dict.fromkeys(_SEPARATORS, " "),
    **dict.fromkeys(_SURROGATES, "?"),
    ord("\n"): "\n",
    ord("\t"): "\t",
}


def clean(text: str) -> str:
    """Return `text` without control characters other than line ends and tabs."""
    return text.translate(_TABLE)


class EstuneError(Exception):
    """The base class of estune's errors. `str` removes control characters from the message."""

    def __str__(self) -> str:
        return clean(super().__str__())


class InputError(EstuneError, ValueError):
    """The input cannot work; the message says what is wrong, where, and how to fix it."""


class ConfigError(InputError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(InputError):
    """A dataset or one of its rows cannot be used."""


class ModelError(InputError):
    """The base model cannot be fine-tuned."""


class RewardError(InputError):
    """A reward function raised, or did not return one number (or None) per completion."""


class JournalError(InputError):
    """A run's journal, snapshot or checkpoint is damaged, or belongs to another run."""


class ResourceError(InputError, OSError):
    """The machine has too little memory or disk, or the output folder cannot be written."""


class EngineError(EstuneError, RuntimeError):
    """An engine refused its weights, or failed to generate."""


class LostFolderError(EstuneError, RuntimeError):
    """A run's folder, or its journal, was renamed, deleted or replaced while it ran."""
