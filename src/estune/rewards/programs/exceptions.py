"""What the parts that grade a program raise."""


class Failed(Exception):
    """A test is not passed."""


class Unsplittable(Exception):
    """A test can only run in the program's process; the message names the reason."""
