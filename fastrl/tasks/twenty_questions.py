"""Twenty questions with animals, an environment: ask for attributes of a hidden thing, then guess which one it is.

    prompt   bdgkmrtz:      eight of the animals, one of which is the thing       turn   F?     does it fly?
    reply    + or -         yes or no                                             turn   =g.    it is the goat

`animals` has the world and the exact posterior. A game ends with the first guess, right or wrong, with a turn that is
neither question nor guess, or with a question too many: generated games allow four, where three bits are missing. Every
character is a token of a character tokenizer, `?` and `.` end a turn.

The split of a generated game is a hash of its animals: no held-out choice of eight is trained on.
"""

import hashlib
import re
from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

from .animals import ATTRIBUTES, NAMES, agreeing, expected_information, has
from .problem import Problem, Score, TaskKind, content_id, with_different_ids
from .rows import UnusableRow

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

NUM_THINGS, NUM_QUESTIONS, DEFAULT_SIZE = 8, 4, 1000
MAX_QUESTIONS = 20
YES, NO = "+", "-"
_TURN = re.compile(rf"(?P<attribute>[{''.join(ATTRIBUTES)}])\?|=(?P<guess>[{''.join(NAMES)}])\.")
_SPLIT_OF_BUCKET = ["train"] * 8 + ["validation", "test"]
INSTRUCTION = (
    "Find out which of these animals I am thinking of: each letter is the first of "
    f"{', '.join(NAMES.values())}. Ask with one letter and a question mark, and nothing else: "
    f"{'; '.join(f'{letter}? it {meaning}' for letter, meaning in ATTRIBUTES.items())}. I answer + for yes, - for no. "
    "Guess once, as =g. for the goat."
)


class TwentyQuestions:
    """The environment. reason: ok | wrong | syntax | no guess; the answer by which games vote is the guess."""

    def reset(self, prompt: str, *, things: str, secret: str, num_questions: int) -> None:
        """secret: the thing to be found, one of `things`; num_questions: how many may be asked."""
        self.secret, self.num_left = secret, num_questions
        self.outcome = Score(0.0, "no guess")

    def step(self, text: str) -> tuple[str, bool]:
        turn = _TURN.fullmatch(text.strip())
        if turn is None:
            return self._over(Score(0.0, "syntax"))
        if guess := turn["guess"]:
            is_right = guess == self.secret
            return self._over(Score(float(is_right), "ok" if is_right else "wrong", guess))
        if not self.num_left:
            return self._over(Score(0.0, "no guess"))
        self.num_left -= 1
        return YES if has(self.secret, turn["attribute"]) else NO, False

    def score(self) -> Score:
        """1.0 for the right guess; 0.0 otherwise, and before it."""
        return self.outcome

    def _over(self, outcome: Score) -> tuple[str, bool]:
        self.outcome = outcome
        return "", True


def read_row(fields: dict, where: str) -> dict:
    """`things` (different letters of the world), `secret` (one of them) and `num_questions` of a row."""
    for name in ("things", "secret", "num_questions"):
        if fields.get(name) is None:
            raise UnusableRow(f"{where}: no field {name!r}; the row has {sorted(fields)}")
    things, secret, count = (fields[name] for name in ("things", "secret", "num_questions"))
    if not isinstance(things, str) or not 1 < len(things) == len(set(things) & NAMES.keys()):
        raise ValueError(f"{where}: 'things' must be at least two different letters from a to z, found {things!r}")
    if not isinstance(secret, str) or len(secret) != 1 or secret not in things:
        raise ValueError(f"{where}: 'secret' must be one of {things!r}, found {secret!r}")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_QUESTIONS:
        raise ValueError(f"{where}: 'num_questions' must be a whole number from 0 to {MAX_QUESTIONS}, found {count!r}")
    return {"things": things, "secret": secret, "num_questions": count}


def read_prompt(fields: dict, where: str) -> str:
    """The things and a colon: `bdgkmrtz:`."""
    return f"{read_row(fields, where)['things']}:"


def generate(config: "TaskConfig", split: str) -> list[Problem]:
    """The first config.num_<split> games of a seeded stream; 0: 1000 of them."""
    rng = Random(f"twenty questions {config.seed} {split}")
    drawn = islice(games(rng, split), getattr(config, f"num_{split}") or DEFAULT_SIZE)
    rows = [{"things": things, "secret": secret, "num_questions": NUM_QUESTIONS} for things, secret in drawn]
    return with_different_ids([Problem(content_id(f"{row['things']}:", row), f"{row['things']}:", row) for row in rows])


def demonstrations(rng: Random, count: int) -> list[tuple[str, list[str]]]:
    """`count` won games of the train split: any question that tells something, until one thing is left, then the guess.

    Where the questions run out before, the guess is right by luck: over all games it is drawn from the posterior.
    """
    return [(f"{things}:", _won_game(rng, things, secret)) for things, secret in islice(games(rng, "train"), count)]


def games(rng: Random, split: str) -> Iterator[tuple[str, str]]:
    """Endless (things, secret) that belong to the split; the things in their alphabetical order."""
    while True:
        things = "".join(sorted(rng.sample(sorted(NAMES), NUM_THINGS)))
        if split_of(things) == split:
            yield things, rng.choice(things)


def _won_game(rng: Random, things: str, secret: str) -> list[str]:
    history: list[tuple[str, bool]] = []
    said = []
    while len(history) < NUM_QUESTIONS and len(agreeing(things, history)) > 1:
        telling = [a for a in ATTRIBUTES if expected_information(things, history, a) > 0]
        history.append((attribute := rng.choice(telling), has(secret, attribute)))
        said += [f"{attribute}?", YES if history[-1][1] else NO]
    return [*said, f"={secret}."]


def split_of(things: str) -> str:
    """The split that owns a choice of things: the same for every seed and every machine."""
    bucket = int.from_bytes(hashlib.sha256(things.encode()).digest()[:8]) % len(_SPLIT_OF_BUCKET)
    return _SPLIT_OF_BUCKET[bucket]


TWENTY_QUESTIONS = TaskKind(
    reward=TwentyQuestions(),
    read_prompt=read_prompt,
    read_row=read_row,
    template="none",
    instruction=INSTRUCTION,
    generate=generate,
    demonstrations=demonstrations,
    stop=("?", "."),
)
