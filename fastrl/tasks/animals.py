"""A closed world: 26 animals and twelve yes-or-no attributes of each, so that what is known can be counted.

Whoever asks starts from a uniform prior over some of the animals. After a history of answers the posterior is uniform
over those that agree with all of them, so entropies and information are logarithms of counts, exact:

    posterior(things, history)              p(thing | history) of each thing
    information(things, history)            bits that each answer has brought: log2(before / after)
    expected_information(things, h, a)      bits that asking for attribute a is going to bring, on average

An oracle for whatever credits the turns of a conversation by what they teach.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

ATTRIBUTES = {
    "M": "is a mammal",
    "F": "can fly",
    "W": "lives in or on water",
    "E": "eats other animals",
    "L": "lays eggs",
    "T": "weighs more than 100 kg",
    "D": "is kept on farms or at home",
    "N": "is active at night",
    "S": "has stripes or spots",
    "H": "has horns",
    "K": "has six legs or more",
    "C": "climbs trees",
}
ANIMALS = (
    "ant bat cat dolphin eagle frog goat horse iguana jaguar kangaroo lobster moth newt owl penguin quail rabbit shark "
    "tiger urchin viper wolf xerus yak zebra"
)
NAMES = {name[0]: name for name in ANIMALS.split()}
# Attribute → the things that have it.
HOLDS = {
    "M": "bcdghjkrtwxyz",
    "F": "bemoq",
    "W": "dflnpsu",
    "E": "bcdefjlnopstvw",
    "L": "aefilmnopqu",
    "T": "dhstyz",
    "D": "cghqry",
    "N": "bcfjklmorvw",
    "S": "jnqtvz",
    "H": "gy",
    "K": "alm",
    "C": "acij",
}

History = Sequence[tuple[str, bool]]  # (attribute, whether the thing has it), in the order of the answers


def has(thing: str, attribute: str) -> bool:
    return thing in HOLDS[attribute]


def agreeing(things: str, history: History) -> str:
    """The things that agree with every answer, in their order. ValueError where none does."""
    found = "".join(thing for thing in things if all(has(thing, a) == is_yes for a, is_yes in history))
    if not found:
        raise ValueError(f"no thing among {things!r} agrees with {list(history)}")
    return found


def posterior(things: str, history: History) -> dict[str, float]:
    """Probability of each thing, from a uniform prior."""
    left = agreeing(things, history)
    return {thing: (thing in left) / len(left) for thing in things}


def information(things: str, history: History) -> list[float]:
    """Bits that each answer has brought; their sum is the drop in entropy since the beginning."""
    counts = [len(agreeing(things, history[:number])) for number in range(len(history) + 1)]
    return [math.log2(before / after) for before, after in pairwise(counts)]


def expected_information(things: str, history: History, attribute: str) -> float:
    """Bits that asking for the attribute brings on average: the entropy of its answer."""
    left = agreeing(things, history)
    shares = [sum(has(thing, attribute) == is_yes for thing in left) / len(left) for is_yes in (True, False)]
    return -sum(share * math.log2(share) for share in shares if share)
