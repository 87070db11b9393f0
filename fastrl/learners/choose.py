"""The learners by the name of their signal, and those that a run has."""

import importlib
from collections.abc import Callable

from fastrl.config.algorithm import chosen
from fastrl.config.schema import TrainConfig
from fastrl.learners.protocol import Learner, LearnerParts
from fastrl.learning.signals import SIGNALS
from fastrl.policy.pretrained import Pretrained
from fastrl.process.ranks import Ranks

# Name of the signal → module:class that is made from `LearnerParts`; imported when it is asked for.
LEARNERS = {
    "gae": "fastrl.learners.critic:CriticLearner",
}


def build_learners(
    config: TrainConfig, base: Pretrained, ranks: Ranks, say: Callable[[str], None] = print
) -> dict[str, Learner]:
    """By the name of their signal, those that algorithm.signals asks for."""
    return {
        name: cls(LearnerParts(chosen(config.algorithm, SIGNALS, name), config, base, ranks, say))
        for name, cls in learner_classes(config).items()
    }


def learner_classes(config: TrainConfig) -> dict[str, type[Learner]]:
    """By the name of their signal, what its learners are made of."""
    places = {name: LEARNERS[name].partition(":") for name in config.algorithm.signals if name in LEARNERS}
    return {name: getattr(importlib.import_module(module), cls) for name, (module, _, cls) in places.items()}
