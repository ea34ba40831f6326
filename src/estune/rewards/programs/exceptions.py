"""How the parts that grade a program say that a test is not passed, or cannot be split."""


class Failed(Exception):
    """A test is not passed, whatever else it holds."""


class Unsplittable(Exception):
    """A test that can only run where the program runs; the message names what stands in the way."""
