"""Makers of functions that tests call in a process of their own, by this module's name."""

import os
import signal

from estune.errors import ConfigError


def made():
    def work(what):
        if what == "spin":
            while True:
                pass
        if what == "power":  # in the middle of which Python looks at no signal
            return (9 ** (9 ** (9**9))) > 0
        if what == "memory":
            return len(b"x" * (1 << 40))
        if what == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        print("a library says something")
        return what

    return work


def not_made():
    raise ConfigError("cannot be had; pip install it")


def spins_over_answers():
    """Spin on any answer. Without one, return at once, as reasoning_gym's verifiers must."""

    def score(name, answer, entry):
        while answer is not None:
            pass
        return 1.0

    return score
