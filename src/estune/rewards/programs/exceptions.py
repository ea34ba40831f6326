"""The exceptions that are raised while a program is graded."""


class Failed(Exception):
    """The program fails a test; the message says why."""


class Unsplittable(Exception):
    """A test cannot be split into requests and checks; the message says why."""
