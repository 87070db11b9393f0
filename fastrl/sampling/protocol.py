"""What every sampler promises."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastrl.config.schema import SamplerConfig
from fastrl.prompts.stops import NO_STOPS, Stops
from fastrl.rollouts import Rollouts

if TYPE_CHECKING:  # the command line imports this file
    from transformers import PreTrainedTokenizerBase

    from fastrl.policy.model import Policy


class SamplerError(RuntimeError):
    """The sampler cannot go on: its engine died, or its weights are not the trainer's."""


class StaleWeightsError(SamplerError):
    """The sampler would draw, or has drawn, from other weights than the trainer's."""


@dataclass(frozen=True)
class SamplingSettings:
    """num_samples per prompt; at most max_new_tokens tokens each, end-of-sequence included; temperature 0 is greedy.

    top_p, top_k (0: off) and repetition_penalty shape the distribution in evaluation; training leaves them neutral.
    stops: what ends a completion besides the sampler's own stop tokens; it is part of it. goes_on: the prompts begin
    with sequences of the last calls, under the same weights: what the sampler still holds of them may serve again.
    """

    num_samples: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stops: Stops = NO_STOPS
    goes_on: bool = False

    def stops_with(self, own: Collection[int]) -> Stops:
        """The stops, and a sampler's own stop tokens."""
        return replace(self.stops, end_ids=self.stops.end_ids.union(own))


@dataclass(frozen=True)
class SamplerParts:
    """What a sampler is made from. policy: the one that is trained. training_bytes: what training will keep on the
    device besides the weights. max_sequence_tokens: prompt and completion of the longest sequence to come.
    """

    config: SamplerConfig
    policy: "Policy"
    tokenizer: "PreTrainedTokenizerBase"
    max_sequence_tokens: int
    training_bytes: int = 0
    trust_remote_code: bool = False
    say: Callable[[str], None] = print


class Sampler(Protocol):
    """shares_weights: the sampler's weights are the trainer's, bit for bit, and so are its keys and values but for
    numerics in the same dtype: its log-probs serve as π_old.
    """

    shares_weights: bool

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, seeds: Sequence[int]
    ) -> Iterator[Rollouts]:
        """num_samples rollouts per prompt, in as many parts as the sampler likes: one is judged while the next is made.

        groups_R is the index of the prompt. The samples of one prompt come in order, prompts in any. seeds has one
        entry per prompt: equal prompt, seed, settings and weights give equal tokens. SamplerError when it cannot go on.
        """
        ...

    def publish(self, version: int) -> int:
        """From here on sample from the trainer's weights as they are now, called `version`; the bytes moved for it."""
        ...

    def prove_fresh(self, version: int) -> None:
        """StaleWeightsError unless the weights sampled from are `version` and equal the trainer's, tensor by tensor."""
        ...

    def pause(self) -> None:
        """Training comes next: hold no memory for sampling until `generate` is called again."""
        ...

    def close(self) -> None:
        """Give back engine memory. The trainer's weights stay usable."""
        ...


def sample(
    sampler: Sampler, prompts: Sequence[Sequence[int]], settings: SamplingSettings, seeds: Sequence[int]
) -> Rollouts:
    """All that `generate` makes, in the order of the prompts, of which there may be none."""
    parts = Rollouts.concat([*sampler.generate(prompts, settings, seeds)] or [Rollouts.of([], [])])
    return parts.take(np.argsort(parts.groups_R, kind="stable"))
