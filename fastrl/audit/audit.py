"""`fastrl audit`: a reward, completions, and what the reward moves with that must not matter.

Two questions. *Does it go along?* Correlations of the reward with length, lines and markup among completions of one
problem that are equally correct. *Does it change?* The same completions, changed in ways that must not matter
(`interventions`), judged again; and unchanged ones, judged again and in reversed order, to know the reward's own noise.

All correlations together, and all bands of noisy rewards together, find something in a clean reward with a probability
of about 5 % (each band has the level 1 − 0.05/m of m). A deterministic reward that changes at all has changed: nothing
is estimated there. Invariance that no intervention tries is not shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastrl.audit.association import FEATURES, association
from fastrl.audit.completions import Completion
from fastrl.audit.interventions import INTERVENTIONS
from fastrl.config.schema import TaskConfig
from fastrl.statistics import bootstrap_of
from fastrl.tasks import TaskKind, find_kind
from fastrl.tasks.verifier.pool import Item, VerifierPool
from fastrl.tasks.verify import make_pool

ERROR_RATE = 0.05
AGAIN, REVERSED = "judged again", "judged in reversed order"


@dataclass(frozen=True)
class Judged:
    """Completions whose reward is known, the rewards, and whether each is correct."""

    completions: list[Completion]
    rewards_n: np.ndarray
    is_correct_n: np.ndarray

    @property
    def groups(self) -> list[str]:
        return [completion.group for completion in self.completions]


def audit(task: TaskConfig, completions: Sequence[Completion], threshold: float, reference: str = "") -> dict:
    """The report as JSON: `num_completions`, `num_groups`, `num_faults`, `associations` and `interventions` by name.

    completions: those of a problem side by side. Correct means reward ≥ threshold, of the task `reference` where one is
    named: without it a reward that takes length for correctness is judged by itself. ValueError for no completions, or
    a reference that needs other fields.
    """
    if not completions:
        raise ValueError("nothing to audit: there are no completions")
    kind = find_kind(task.name, task.reward_folder)
    with make_pool(kind.reward, task) as pool:
        rewards_n = rewards_of(pool, [(c.prompt, c.text, c.row) for c in completions])
        correct_n = rewards_n
        if reference:
            correct_n = _reference_rewards(find_kind(reference, task.reward_folder), task, completions)
        is_known_n = ~np.isnan(rewards_n) & ~np.isnan(correct_n)
        judged = Judged(
            [c for c, is_known in zip(completions, is_known_n, strict=True) if is_known],
            rewards_n[is_known_n],
            correct_n[is_known_n] >= threshold,
        )
        changes = intervened(pool, judged) if judged.completions else {}
    return {
        "num_completions": len(judged.completions),
        "num_groups": len(set(judged.groups)),
        "num_faults": int((~is_known_n).sum()),
        "reference": reference or task.name,
        "associations": associations(judged) if judged.completions else {},
        "interventions": changes,
    }


def associations(judged: Judged) -> dict[str, dict]:
    """By feature: `within_problems`, which correctness confounds, and `equally_correct`, which is the question."""
    found, level = {}, 1 - ERROR_RATE / len(FEATURES)
    _, groups_n = np.unique(judged.groups, return_inverse=True)
    for name, feature in FEATURES.items():
        values_n = np.array([feature(c.text) for c in judged.completions], dtype=np.float64)
        plain = association(values_n, judged.rewards_n, groups_n, None, level)
        found[name] = {
            "within_problems": plain,
            "equally_correct": association(values_n, judged.rewards_n, groups_n, judged.is_correct_n, level),
        }
    return found


def intervened(pool: VerifierPool, judged: Judged) -> dict[str, dict]:
    """By intervention, and for unchanged completions: how many were changed, what became of their rewards."""
    same = [(c.prompt, c.text, c.row) for c in judged.completions]
    noise_n = rewards_of(pool, same) - judged.rewards_n
    reversed_n = rewards_of(pool, same[::-1])[::-1] - judged.rewards_n
    everywhere_n, level = np.ones(len(same), dtype=bool), 1 - ERROR_RATE / (1 + len(INTERVENTIONS))
    found = {AGAIN: _changed(judged, noise_n, np.zeros_like(noise_n), everywhere_n, level)}
    found[REVERSED] = _changed(judged, reversed_n, noise_n, everywhere_n, level)
    for name, intervention in INTERVENTIONS.items():
        texts = [intervention(c.text) for c in judged.completions]
        applies_n = np.array([text is not None for text in texts], dtype=bool)
        if applies_n.any():
            pairs = zip(judged.completions, texts, strict=True)
            items = [(c.prompt, c.text if text is None else text, c.row) for c, text in pairs]
            changes_n = rewards_of(pool, items) - judged.rewards_n
            found[name] = _changed(judged, changes_n, noise_n, applies_n, level)
    return found


def rewards_of(pool: VerifierPool, items: Sequence[Item]) -> np.ndarray:
    """(n,) rewards, NaN where the verifier broke. A reward that judges groups sees those of a problem together."""
    return np.array([np.nan if v.reward is None else v.reward for v in pool.score(items)], dtype=np.float64)


def _reference_rewards(kind: TaskKind, task: TaskConfig, completions: Sequence[Completion]) -> np.ndarray:
    items = [(c.prompt, c.text, kind.read_row(c.fields, c.where)) for c in completions]
    with make_pool(kind.reward, task) as pool:
        return rewards_of(pool, items)


def _changed(
    judged: Judged, changes_n: np.ndarray, noise_n: np.ndarray, applies_n: np.ndarray, level: float
) -> dict[str, float | int | bool | dict | None]:
    """Means over completions to which the intervention applies. moves: changed at all, or, where unchanged completions
    change too, changed by more: the band over problems of |change| − |noise| lies above 0."""
    is_known_n = applies_n & ~np.isnan(changes_n) & ~np.isnan(noise_n)
    result = {"num": int(applies_n.sum()), "num_faults": int((applies_n & np.isnan(changes_n)).sum())}
    if not is_known_n.any():
        return result | {"num_changed": 0, "changed_share": None, "mean_change": None, "largest": None, "moves": False}
    change_n, noise_n = changes_n[is_known_n], np.abs(noise_n[is_known_n])
    _, group_n = np.unique(np.array(judged.groups)[is_known_n], return_inverse=True)
    columns = (np.ones(len(change_n)), change_n != 0, change_n, np.abs(change_n) - noise_n)
    sums_PK = np.stack([np.bincount(group_n, column) for column in columns], axis=1)
    share, mean, excess = (bootstrap_of(sums_PK, _ratio(k), level=level) for k in (1, 2, 3))
    is_noisy = bool(noise_n.any())
    return result | {
        "num_changed": int((change_n != 0).sum()),
        "changed_share": vars(share),
        "mean_change": vars(mean),
        "largest": float(np.abs(change_n).max()),
        "moves": excess.low > 0 if is_noisy else bool(change_n.any()),
    }


def _ratio(column: int):
    return lambda sums_RK: sums_RK[:, column] / sums_RK[:, 0]
