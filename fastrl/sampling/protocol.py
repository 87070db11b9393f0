"""What every sampler promises."""

from dataclasses import dataclass
from typing import Protocol

from fastrl.rollouts import Rollout


@dataclass(frozen=True)
class SamplingSettings:
    """num_samples per prompt; at most max_new_tokens tokens each, end-of-sequence included; temperature 0 is greedy.

    top_p, top_k (0: off) and repetition_penalty shape the distribution in evaluation; training leaves them neutral.
    """

    num_samples: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class Sampler(Protocol):
    """shares_weights: the sampler reads the trainer's own tensors: its log-probs are π_old without another forward."""

    shares_weights: bool

    def generate(self, prompts: list[list[int]], settings: SamplingSettings, seeds: list[int]) -> list[Rollout]:
        """num_samples rollouts per prompt, prompt-major; `group` is the index of the prompt.

        seeds has one entry per prompt; equal prompt, seed, settings and weights give equal tokens. sampler_logprobs are
        log-probs of the distribution that was sampled from (after temperature, top-p, …).
        """
        ...
