"""Twenty questions with tags: before it asks or guesses, a turn says what it is for. An environment for RLVMR.

    PF?    planning: a question that tells as much as any could, or a guess when one thing is left, is worth 1
    RF?    reflection: worth 1 where the last answer told nothing and this question tells something

Other turns are worth 0, and so are all without a tag, which are played like any other (`Score.turns`). What a turn
tells is counted by the exact posterior of `animals`. Tags of the paper: planning, explore, reflection, monitor
(arXiv:2507.22844); its rules for their rewards are for another world, and their sizes are not known to us.
"""

from itertools import islice
from random import Random

from .animals import ATTRIBUTES, agreeing, expected_information, has, information
from .problem import Score, TaskKind
from .twenty_questions import (
    INSTRUCTION,
    NO,
    NUM_QUESTIONS,
    YES,
    TwentyQuestions,
    games,
    generate,
    read_prompt,
    read_row,
)

PLANNING, REFLECTION = "P", "R"
WASTED = 0.3  # share of the demonstrated questions that tell nothing, for something to reflect on
ROUNDING = 1e-9  # bits


class TaggedQuestions(TwentyQuestions):
    """Twenty questions whose turns may open with a tag."""

    def reset(self, prompt: str, *, things: str, secret: str, num_questions: int) -> None:
        super().reset(prompt, things=things, secret=secret, num_questions=num_questions)
        self.things, self.history, self.worths = things, [], []

    def step(self, text: str) -> tuple[str, bool]:
        turn = text.strip()
        tag = turn[0] if turn[:1] in (PLANNING, REFLECTION) else ""
        action = turn.removeprefix(tag).lstrip()
        reply, is_done = super().step(action)
        is_legal = bool(reply) or self.outcome.answer is not None
        self.worths.append(float(is_legal and _worth(tag, action, self.things, self.history)))
        if reply:
            self.history.append((action[0], reply == YES))
        return reply, is_done

    def score(self) -> Score:
        """The game's, with what each turn was worth."""
        found = super().score()
        return Score(found.reward, found.reason, found.answer, tuple(self.worths))


def _worth(tag: str, action: str, things: str, history: list[tuple[str, bool]]) -> bool:
    """Whether a legal question or guess does what its tag says. history: before it."""
    left, is_guess = agreeing(things, history), action.startswith("=")
    tells = 0.0 if is_guess else expected_information(things, history, action[0])
    if tag == PLANNING:
        most = max(expected_information(things, history, attribute) for attribute in ATTRIBUTES)
        return len(left) == 1 if is_guess else tells > max(most - ROUNDING, 0.0)
    told_nothing = bool(history) and information(things, history)[-1] == 0
    return tag == REFLECTION and told_nothing and (action[1] in left if is_guess else tells > 0)


def demonstrations(rng: Random, count: int) -> list[tuple[str, list[str]]]:
    """`count` won games of the train split: planning, but for what follows a question that told nothing: reflection.

    A question tells nothing with probability 0.3, where there is such a one. Guesses are right by luck, as in the plain
    game's demonstrations.
    """
    return [(f"{things}:", _won_game(rng, things, secret)) for things, secret in islice(games(rng, "train"), count)]


def _won_game(rng: Random, things: str, secret: str) -> list[str]:
    history: list[tuple[str, bool]] = []
    said: list[str] = []
    tag = PLANNING
    while len(history) < NUM_QUESTIONS and len(agreeing(things, history)) > 1:
        tells = {a: expected_information(things, history, a) > 0 for a in ATTRIBUTES}
        is_wasted = rng.random() < WASTED and not all(tells.values())
        attribute = rng.choice([a for a in ATTRIBUTES if tells[a] != is_wasted])
        history.append((attribute, has(secret, attribute)))
        said += [f"{tag}{attribute}?", YES if history[-1][1] else NO]
        tag = REFLECTION if is_wasted else PLANNING
    return [*said, f"{tag}={secret}."]


TAGGED_QUESTIONS = TaskKind(
    reward=TaggedQuestions(),
    read_prompt=read_prompt,
    read_row=read_row,
    template="none",
    instruction=f"{INSTRUCTION} Put P before a question or guess that you have planned, R before one after reflection.",
    generate=generate,
    demonstrations=demonstrations,
    stop=("?", "."),
)
