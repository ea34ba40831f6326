"""Seeds: which one member n of a step gets, and the bijection on 64 bits that spreads them."""

GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ divided by the golden ratio
_MASK = 2**64 - 1
_MEMBERS = 1 << 20  # seeds that one step may have, so that (step, n) numbers them all


def seed_of(run_seed: int, step: int, n: int) -> int:
    """Return the seed of member `n` of `step`.

    Seeds are distinct for all (step, n) of a run, since `mix` is a bijection. They are unrelated to
    those of another run seed, whose sequence starts at a random place far away.
    """
    return mix(mix(run_seed) + step * _MEMBERS + n)


def mix(x: int) -> int:
    """Return the finaliser of SplitMix64 of x, a bijection on 64 bits.

    Steele et al. 2014, https://doi.org/10.1145/2660193.2660195.
    """
    x = (x + GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
