"""The vLLM sampler: an engine in this process whose weights are the trainer's.

Every call starts from an empty prefix cache: keys of older weights cannot be read, and what a call returns does not
depend on what was sampled before (a resumed run continues bitwise). Samples of one prompt still share its prefill. A
call that goes on with sequences of the last ones reads theirs, unless weights were published in between.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fastrl.policy.loading import stop_token_ids
from fastrl.policy.lora import adapters
from fastrl.process.seeds import seed_of
from fastrl.rollouts import Rollouts
from fastrl.sampling.kv_budget import kv_cache_bytes, num_sequences
from fastrl.sampling.prefix_cache import check_cache_reads
from fastrl.sampling.protocol import SamplerError, SamplerParts, SamplingSettings
from fastrl.sampling.vllm_engine import Completion, Engine, EngineSettings, Request
from fastrl.sampling.weights.choose import share_weights
from fastrl.sampling.weights.shared import SharedWeights

PART = 256  # completions, of whole prompts, that are handed over while others are still sampled


class VllmSampler:
    """Samples from `weights` through `engine`. stop_token_ids end a completion and are part of it."""

    def __init__(self, engine: Engine, weights: SharedWeights, *, stop_token_ids: list[int]):
        self.engine, self.weights, self.stop_token_ids = engine, weights, stop_token_ids
        self._is_paused = False
        self._cached_version: int | None = None  # of the weights that everything in the prefix cache comes from

    @property
    def shares_weights(self) -> bool:
        return self.weights.is_exact and self.engine.settings.kv_cache_dtype == "auto"

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, seeds: Sequence[int]
    ) -> Iterator[Rollouts]:
        """See `Sampler.generate`. Each sample is its own request with the seed seed_of(prompt's seed, sample)."""
        if len(prompts) != len(seeds):
            raise ValueError(f"one seed per prompt: {len(prompts)} prompts, {len(seeds)} seeds")
        self._check_lengths(prompts, settings)
        if not prompts:
            return
        is_empty = self._prepare_cache(settings)
        n = settings.num_samples
        seeds_of = [seed_of(seed, j) for seed in seeds for j in range(n)]
        requests = [Request(list(prompts[i // n]), seed) for i, seed in enumerate(seeds_of)]
        done: dict[int, Completion] = {}
        num_left, ready = [n] * len(prompts), []
        for number, completion in self.engine.stream(requests, settings, settings.stops_with(self.stop_token_ids)):
            done[number] = completion
            num_left[number // n] -= 1
            ready += [number // n] * (not num_left[number // n])
            if n * len(ready) >= PART and any(num_left):
                yield self._rollouts(prompts, ready, done, n)
                ready = []
        if is_empty:
            cached = [[done[i * n + j].num_cached_tokens for j in range(n)] for i in range(len(prompts))]
            check_cache_reads(prompts, cached)
        yield self._rollouts(prompts, ready, done, n)

    def _prepare_cache(self, settings: SamplingSettings) -> bool:
        """Whether the prefix cache is empty now. It is kept for a call that goes on, under the weights that filled it.

        That those are the trainer's was proven by the call that found it empty: `check_cache_reads`.
        """
        if self._is_paused:
            self.engine.restore_kv_cache()
            self._is_paused = False
        if settings.goes_on and self._cached_version == self.weights.version:
            return False
        self._cached_version = None
        if not self.engine.reset_prefix_cache():
            raise SamplerError("vLLM did not reset its prefix cache: it still holds keys and values of older weights")
        self._cached_version = self.weights.version
        return True

    def _rollouts(
        self, prompts: Sequence[Sequence[int]], groups: list[int], done: dict[int, Completion], num_samples: int
    ) -> Rollouts:
        """All samples of some prompts."""
        completions = [done[group * num_samples + j] for group in groups for j in range(num_samples)]
        groups_R = np.repeat(groups, num_samples)
        return Rollouts.of(
            [prompts[group] for group in groups_R],
            [c.token_ids for c in completions],
            sampler_logprobs=[c.logprobs for c in completions],
            is_truncated=[c.finish_reason == "length" for c in completions],
            groups=groups_R,
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
            self._is_paused, self._cached_version = True, None

    def close(self) -> None:
        """Stop the engine; aliased weights stay alive with the trainer's model."""
        self.engine.close()


def make_vllm(parts: SamplerParts) -> VllmSampler:
    """The sampler `vllm`: an engine that shares the policy's weights. ValueError when vLLM cannot serve them so."""
    policy, config, model = parts.policy, parts.config, parts.policy.model
    added = adapters(model)
    cache_bytes = kv_cache_bytes(policy, config, parts.max_sequence_tokens, parts.training_bytes)
    settings = EngineSettings(
        path=model.name_or_path,
        dtype=policy.dtype,
        max_sequence_tokens=parts.max_sequence_tokens,
        max_num_sequences=num_sequences(policy, config, parts.max_sequence_tokens, cache_bytes),
        kv_cache_bytes=cache_bytes,
        kv_cache_dtype=config.kv_cache_dtype,
        trust_remote_code=parts.trust_remote_code,
        lora_rank=max((len(a.A) for a in added.values()), default=0),
        lora_targets=tuple(sorted({name.rpartition(".")[2] for name in added})),
        can_release_kv_cache=config.release_kv_cache,
    )
    engine = Engine(settings)
    try:
        weights = share_weights(config.weights, engine, model, parts.say, root=policy)
    except ValueError:
        engine.close()
        raise
    return VllmSampler(engine, weights, stop_token_ids=stop_token_ids(model, parts.tokenizer))
