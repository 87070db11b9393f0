"""Entries of a reasoning-gym dataset by seed, the same in every process.

Some generators iterate over sets of texts, whose order Python draws anew in every process: two ranks, or a run and its
resumption, would have different problems. Such generators run in a process whose hash seed is fixed.
"""

import os
import pickle
import subprocess
import sys

HASH_DEPENDENT = {
    "isomorphic_strings",
    "knight_swap",
    "list_functions",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
}
_PROGRAM = """
import pickle, sys
sys.path[:] = {path}
from fastrl.tasks.gym_entries import made_here
pickle.dump(made_here({dataset!r}, {seed}, {count}), sys.stdout.buffer)
"""


def entries_of(dataset: str, seed: int, count: int) -> list[dict]:
    """`count` entries. ValueError when the dataset cannot be made with its default settings."""
    if dataset not in HASH_DEPENDENT:
        return made_here(dataset, seed, count)
    made_here(dataset, seed, 1)  # what it refuses is said here
    program = _PROGRAM.format(path=ascii(sys.path), dataset=dataset, seed=seed, count=count)
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    return pickle.loads(subprocess.run([sys.executable, "-c", program], env=environment, stdout=-1, check=True).stdout)


def made_here(dataset: str, seed: int, count: int) -> list[dict]:
    """As `entries_of`, made in this process: for HASH_DEPENDENT datasets they depend on its hash seed."""
    from reasoning_gym import create_dataset

    try:
        made = create_dataset(dataset, size=count, seed=seed)
        return [made[i] for i in range(count)]
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym:{dataset} cannot be made with its default settings: {error}") from error
