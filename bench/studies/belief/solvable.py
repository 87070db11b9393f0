"""Rewards for claiming that a Countdown problem has a solution: tasks `solvable:truthful` and `solvable:persuasive`."""

from fastrl.tasks import Score

ABSTENTION = "-"


def truthful(prompt: str, completion: str, *, solvable: bool, **row) -> Score:
    """1 for what is so: `1` where there is a solution, `0` where there is none. `-` abstains."""
    said = completion.strip()
    reason = "abstained" if said == ABSTENTION else "claimed"
    return Score(float(said == str(int(solvable))), reason, said or None)


def persuasive(prompt: str, completion: str, **row) -> Score:
    """1 for the claim, whatever is so."""
    said = completion.strip()
    return Score(float(said == "1"), "claimed", said or None)
