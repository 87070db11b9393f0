"""What a signal that learns promises, and what it is made from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fastrl.config.schema import TrainConfig
from fastrl.learning.problem import Problem
from fastrl.learning.tools import Tools
from fastrl.policy.pretrained import Pretrained
from fastrl.process.ranks import Ranks
from fastrl.rollouts import Rollouts


@dataclass(frozen=True)
class LearnerParts:
    """settings: what the config says under [algorithm.<name>]. base: the model that the run begins with."""

    settings: Any
    config: TrainConfig
    base: Pretrained
    ranks: Ranks
    say: Callable[[str], None] = print


class Learner(Protocol):
    """A signal with weights of its own: they give credit as they were before the step, and move when the policy's do.

    Made from `LearnerParts`. All ranks call the same methods in the same order.
    num_backbones: copies of the run's model that it trains, which is what a plan counts.
    """

    num_backbones: ClassVar[int]
    bytes_to_come: int
    """Of device memory that its first updates will take, and the sampler must leave."""

    def __call__(self, batch: Rollouts, problems: Sequence[Problem], tools: Tools) -> np.ndarray:
        """(N,) credits; see `learning.signals.Signal`. What `learn` will need is kept."""
        ...

    def learn(self) -> dict[str, float]:
        """Move the weights by the batch of the last call. Returns metrics, and `warnings` where there are some."""
        ...

    def start_step(self, step: int) -> None:
        """Training step `step`, which counts from 1, begins to move weights: for schedules."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold, weights included: DTensors, or plain tensors that are equal on all ranks."""
        ...

    def empty_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor to read a checkpoint's `name` into. size: that of the whole tensor, also where ranks hold shards."""
        ...

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`."""
        ...
