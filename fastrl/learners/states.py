"""The state of all that a run trains, as one set of tensors: the policy's optimizer and the learners."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastrl.learners.protocol import Learner
from fastrl.policy.optimizer.base import Optimizer


@dataclass(frozen=True)
class TrainedStates:
    """The optimizer's tensors keep their names; those of a learner are called `signal/name`."""

    optimizer: Optimizer
    learners: Mapping[str, Learner] = field(default_factory=dict)

    def start_step(self, step: int) -> None:
        """See `Optimizer.start_step`."""
        for part in (self.optimizer, *self.learners.values()):
            part.start_step(step)

    def state_tensors(self) -> dict[str, Tensor]:
        """Flat tensors for a checkpoint, beside the policy's weights."""
        tensors = self.optimizer.state_tensors()
        for owner, learner in self.learners.items():
            tensors |= {f"{owner}/{name}": tensor for name, tensor in learner.state_tensors().items()}
        return tensors

    def empty_state(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor to read a checkpoint's `name` into."""
        owner, _, own_name = name.rpartition("/")
        part = self.learners.get(owner, self.optimizer)
        return part.empty_state(own_name, size, dtype)

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`."""
        self.optimizer.load_state_tensors(tensors)
        for owner, learner in self.learners.items():
            prefix = f"{owner}/"
            learner.load_state_tensors({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
