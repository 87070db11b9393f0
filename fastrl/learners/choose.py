"""The learners by the name of their signal, and those that a run has."""

from collections.abc import Callable
from typing import Any

from fastrl.config.algorithm import chosen
from fastrl.config.schema import TrainConfig
from fastrl.learners.critic import CriticLearner
from fastrl.learners.protocol import Learner, LearnerParts
from fastrl.learning.signals import SIGNALS
from fastrl.policy.pretrained import Pretrained
from fastrl.process.ranks import Ranks

LEARNERS: dict[str, type[Learner]] = {
    "gae": CriticLearner,
}


def build_learners(
    config: TrainConfig, base: Pretrained, ranks: Ranks, say: Callable[[str], None] = print
) -> dict[str, Learner]:
    """By the name of their signal, those that algorithm.signals asks for."""
    names = [name for name in config.algorithm.signals if name in LEARNERS]
    return {name: LEARNERS[name](LearnerParts(settings(config, name), config, base, ranks, say)) for name in names}


def settings(config: TrainConfig, name: str) -> Any:
    """What the config says of a signal."""
    return chosen(config.algorithm, SIGNALS, name)


def num_backbones(config: TrainConfig) -> int:
    """Copies of the run's model that its signals train."""
    return sum(LEARNERS[name].num_backbones for name in config.algorithm.signals if name in LEARNERS)
