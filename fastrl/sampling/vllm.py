"""The vLLM sampler: an engine in this process whose weights are the trainer's.

Every call starts from an empty prefix cache: keys of older weights cannot be read, and what a call returns does not
depend on what was sampled before (a resumed run continues bitwise). Samples of one prompt still share its prefill.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fastrl.process.seeds import seed_of
from fastrl.rollouts import Rollouts
from fastrl.sampling.engine import Engine, Request
from fastrl.sampling.prefix_cache import check_cache_reads
from fastrl.sampling.protocol import SamplerError, SamplingSettings
from fastrl.sampling.weights.shared import SharedWeights


class VllmSampler:
    """Samples through `engine` from `weights`. stop_token_ids end a completion and are part of it."""

    def __init__(self, engine: Engine, weights: SharedWeights, *, stop_token_ids: list[int]):
        self.engine, self.weights, self.stop_token_ids = engine, weights, stop_token_ids
        self._is_paused = False

    @property
    def shares_weights(self) -> bool:
        return self.weights.is_exact

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, seeds: Sequence[int]
    ) -> Iterator[Rollouts]:
        """See `Sampler.generate`. Each sample is its own request with the seed seed_of(prompt's seed, sample)."""
        if len(prompts) != len(seeds):
            raise ValueError(f"one seed per prompt: {len(prompts)} prompts, {len(seeds)} seeds")
        self._check_lengths(prompts, settings)
        if not prompts:
            return
        if self._is_paused:
            self.engine.restore_kv_cache()
            self._is_paused = False
        if not self.engine.reset_prefix_cache():
            raise SamplerError("vLLM did not reset its prefix cache: it still holds keys and values of older weights")
        n = settings.num_samples
        requests = [
            Request(list(prompt), seed_of(seed, j))
            for prompt, seed in zip(prompts, seeds, strict=True)
            for j in range(n)
        ]
        completions = self.engine.generate(requests, settings, self.stop_token_ids)
        cached = [c.num_cached_tokens for c in completions]
        check_cache_reads(prompts, [cached[i : i + n] for i in range(0, len(cached), n)])
        yield Rollouts.of(
            [request.prompt_ids for request in requests],
            [c.token_ids for c in completions],
            sampler_logprobs=[c.logprobs for c in completions],
            is_truncated=[c.finish_reason == "length" for c in completions],
            groups=np.repeat(np.arange(len(prompts)), n),
            weight_version=self.weights.version,
        )

    def _check_lengths(self, prompts: Sequence[Sequence[int]], settings: SamplingSettings) -> None:
        limit = self.engine.settings.max_sequence_tokens
        longest = max(map(len, prompts), default=0)
        if longest + settings.max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {longest} tokens and {settings.max_new_tokens} new ones exceed the {limit} tokens that "
                "this engine was built for"
            )

    def publish(self, version: int) -> int:
        """See `Sampler.publish`."""
        return self.weights.publish(version)

    def prove_fresh(self, version: int) -> None:
        """See `Sampler.prove_fresh`."""
        self.weights.prove_fresh(version)

    def pause(self) -> None:
        """See `Sampler.pause`: the KV cache goes, if the engine was built for that."""
        if self.engine.settings.can_release_kv_cache and not self._is_paused:
            self.engine.release_kv_cache()
            self._is_paused = True

    def close(self) -> None:
        """Stop the engine; aliased weights stay alive with the trainer's model."""
        self.engine.close()
