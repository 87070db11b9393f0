"""The embedded sampler: transformers' `model.generate` on the very module that is being trained.

`generate` runs greedily over logits that a processor has already turned into a draw: every other token gets −inf. So
the token and its log-prob come from one softmax, each row draws from its own stream of uniforms (the batch around it
changes nothing but rounding), and a vocabulary of 150k costs one cumulative sum, not 150k random numbers. When a third
of the rows are finished `generate` is stopped, and goes on with the others.
The model's own generation_config (pretrained ones carry temperature, top-p, penalties) is ignored.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fastrl.policy.loading import stop_token_ids
from fastrl.policy.model import Policy
from fastrl.policy.sharding import whole
from fastrl.process.seeds import seed_of
from fastrl.process.watchdog import alive
from fastrl.prompts.stops import Stops
from fastrl.rollouts import Rollouts
from fastrl.sampling.growing_cache import growing_cache
from fastrl.sampling.protocol import SamplerParts, SamplingSettings

FINISHED_SHARE, MIN_FINISHED = 1 / 3, 16  # of the rows, that are worth taking out of a batch


class InverseCdfDraw(LogitsProcessor):
    """Draws one token per row by inverting the CDF at a given uniform; keeps tokens' log-probs.

    uniforms_TB is (max_new_tokens, B) float64 in [0, 1). `logprobs` ends up with one (B,) tensor per position.
    """

    def __init__(self, uniforms_TB: Tensor, temperature: float, warpers: LogitsProcessorList):
        self.uniforms_TB = uniforms_TB
        self.temperature = temperature
        self.warpers = warpers
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        """Overwrites the scores, which are `generate`'s own copy of the logits. Few rows at once: see `_chunk_rows`."""
        alive()
        uniforms_B = self.uniforms_TB[len(self.logprobs)]
        num_rows = _chunk_rows(scores_BV)
        parts = zip(*(x.split(num_rows) for x in (input_ids, scores_BV, uniforms_B)), strict=True)
        tokens, logprobs = zip(*(self._draw(*part) for part in parts), strict=True)
        self.logprobs.append(torch.cat(logprobs))
        return scores_BV.fill_(-torch.inf).scatter_(1, torch.cat(tokens).unsqueeze(1), 0.0)

    def _draw(self, input_ids: Tensor, scores_RV: Tensor, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, log-probs) of some rows."""
        if self.temperature > 0:
            scores_RV.div_(self.temperature)
        logprobs_RV = torch.log_softmax(self.warpers(input_ids, scores_RV), dim=-1)
        if self.temperature == 0:
            tokens_R1 = logprobs_RV.argmax(dim=1, keepdim=True)
        else:
            cdf_RV = logprobs_RV.double().exp_().cumsum(dim=1)
            tokens_R1 = torch.searchsorted(cdf_RV, uniforms_R.unsqueeze(1) * cdf_RV[:, -1:], right=True)
        return tokens_R1.squeeze(1), logprobs_RV.gather(1, tokens_R1).squeeze(1)


def _chunk_rows(scores_BV: Tensor) -> int:
    """Rows whose float64 CDF takes 4 MiB on CPU, where it then stays in cache, and 256 MiB on CUDA."""
    budget = (4 if scores_BV.device.type == "cpu" else 256) << 20
    return max(1, budget // (8 * scores_BV.shape[1]))


class ManyFinished(StoppingCriteria):
    """Stops all rows once enough of them are finished to go on without these; before that, those that are.

    start: where in a row its completion begins.
    """

    def __init__(self, stops: Stops, num_rows: int, start: int, device: torch.device):
        self.stops, self.start, self.enough = stops, start, max(MIN_FINISHED, math.ceil(FINISHED_SHARE * num_rows))
        self.end_ids = torch.tensor(sorted(stops.end_ids), dtype=torch.int64, device=device)
        self.text_ids = torch.tensor(sorted(stops.text_ids), dtype=torch.int64, device=device)
        self.is_finished_B = torch.zeros(num_rows, dtype=torch.bool, device=device)

    def __call__(self, input_ids_BL: Tensor, scores: object, **kwargs: object) -> Tensor:
        last_B = input_ids_BL[:, -1]
        self.is_finished_B |= torch.isin(last_B, self.end_ids)
        if self.stops.texts:
            for row in (torch.isin(last_B, self.text_ids) & ~self.is_finished_B).nonzero().squeeze(1).tolist():
                self.is_finished_B[row] = self.stops.has_text(input_ids_BL[row, self.start :].tolist())
        return self.is_finished_B | (self.is_finished_B.sum() >= self.enough)


def _warpers(settings: SamplingSettings) -> LogitsProcessorList:
    warpers = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        warpers.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.top_k > 0:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return warpers


def _uniforms(streams: list[tuple[int, int]], num_tokens: int) -> Tensor:
    """(num_tokens, B) float64 in [0, 1): sample j of a prompt with this seed draws from the stream seed_of(seed, j)."""
    rows = [np.random.Generator(np.random.SFC64(seed_of(*stream))).random(num_tokens) for stream in streams]
    return torch.from_numpy(np.stack(rows, axis=1))


class EmbeddedSampler:
    """Samples from `model` in place. stop_token_ids end a completion and are part of it.

    whole: a context in which the model's parameters are not sharded.
    """

    shares_weights = True

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_token_ids: list[int],
        pad_token_id: int,
        batch_size: int,
        whole: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model, self.whole = model, whole
        self.stop_token_ids = stop_token_ids
        self.pad_token_id = pad_token_id
        self.batch_size = batch_size

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, seeds: Sequence[int]
    ) -> Iterator[Rollouts]:
        """See `Sampler.generate`. Prompts of similar length run together, at most `batch_size` sequences at once.

        Nothing is held between calls: prompts that go on are read again from their beginning.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"one seed per prompt: {len(prompts)} prompts, {len(seeds)} seeds")
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        requests = [(i, j) for i in by_length for j in range(settings.num_samples)]
        with self.whole():
            for start in range(0, len(requests), self.batch_size):
                yield self._generate_batch(requests[start : start + self.batch_size], prompts, settings, seeds)

    def _generate_batch(
        self,
        batch: list[tuple[int, int]],
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        seeds: Sequence[int],
    ) -> Rollouts:
        unique = list(dict.fromkeys(i for i, _ in batch))
        ids_PL, mask_PL = self._left_pad([prompts[i] for i in unique])
        row_of = {i: row for row, i in enumerate(unique)}
        rows_B = torch.tensor([row_of[i] for i, _ in batch], device=ids_PL.device)
        uniforms_TB = _uniforms([(seeds[i], j) for i, j in batch], settings.max_new_tokens).to(ids_PL.device)
        cache = self._prefill(ids_PL, mask_PL, rows_B)
        tokens, logprobs = self._complete(ids_PL[rows_B], mask_PL[rows_B], cache, uniforms_TB, settings)
        stops = settings.stops_with(self.stop_token_ids)
        lengths = [stops.length(row) for row in tokens]
        kept = [length or len(row) for length, row in zip(lengths, tokens, strict=True)]
        return Rollouts.of(
            [prompts[i] for i, _ in batch],
            [row[:n] for row, n in zip(tokens, kept, strict=True)],
            sampler_logprobs=[row[:n] for row, n in zip(logprobs, kept, strict=True)],
            is_truncated=[length is None for length in lengths],
            groups=[i for i, _ in batch],
        )

    def _complete(
        self, ids_BL: Tensor, mask_BL: Tensor, cache: DynamicCache, uniforms_TB: Tensor, settings: SamplingSettings
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Tokens and log-probs of each row, to its stop at least. Calls `generate` on fewer and fewer rows."""
        num_rows, num_tokens = len(ids_BL), settings.max_new_tokens
        stops, start = settings.stops_with(self.stop_token_ids), ids_BL.shape[1]
        tokens: list[list[int]] = [[] for _ in range(num_rows)]
        logprobs: list[list[float]] = [[] for _ in range(num_rows)]
        running_R, done = torch.arange(num_rows, device=ids_BL.device), 0
        while len(running_R) and done < num_tokens:
            draw = InverseCdfDraw(uniforms_TB[done:, running_R], settings.temperature, _warpers(settings))
            finished = ManyFinished(stops, len(running_R), start, ids_BL.device)
            old = ids_BL.shape[1]
            with self._neutral_generation_config(sorted(stops.end_ids)):
                ids_BL = self.model.generate(
                    input_ids=ids_BL,
                    attention_mask=mask_BL,
                    past_key_values=cache,
                    logits_processor=LogitsProcessorList([draw]),
                    stopping_criteria=StoppingCriteriaList([finished]),
                    max_new_tokens=num_tokens - done,
                    synced_gpus=False,  # ranks may stop at different lengths: `whole` leaves no collective in a forward
                )
            new = zip(running_R.tolist(), ids_BL[:, old:].tolist(), torch.stack(draw.logprobs, 1).tolist(), strict=True)
            for row, row_tokens, row_logprobs in new:
                tokens[row] += row_tokens
                logprobs[row] += row_logprobs
            done += len(draw.logprobs)
            left = (~finished.is_finished_B).nonzero().squeeze(1)
            running_R, ids_BL = running_R[left], ids_BL[left]
            mask_BL = pad(mask_BL[left], (0, ids_BL.shape[1] - old), value=1)
            cache.batch_select_indices(left)
        return tokens, logprobs

    def _left_pad(self, prompts: list[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, prompts))
        ids = [[self.pad_token_id] * (width - len(p)) + list(p) for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def _prefill(self, ids_PL: Tensor, mask_PL: Tensor, rows_B: Tensor) -> DynamicCache:
        """Keys and values of each prompt but its last token, computed once per prompt and repeated per sample.

        Empty, and left to `generate`, where that saves nothing.
        """
        cache = growing_cache(self.model.config)
        if ids_PL.shape[1] < 2 or len(rows_B) == len(ids_PL):
            return cache
        mask = mask_PL[:, :-1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.model.base_model(
            input_ids=ids_PL[:, :-1], attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        cache.batch_select_indices(rows_B)
        return cache

    @contextmanager
    def _neutral_generation_config(self, stops: list[int]) -> Iterator[None]:
        """Swaps the model's own config away: `generate` would fill every unset field from it."""
        own = self.model.generation_config
        self.model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=stops, pad_token_id=self.pad_token_id, use_cache=True
        )
        try:
            yield
        finally:
            self.model.generation_config = own

    def publish(self, version: int) -> int:
        """Nothing to move: this is the trained module."""
        return 0

    def prove_fresh(self, version: int) -> None:
        """Nothing to prove: this is the trained module."""

    def pause(self) -> None:
        """Nothing is held between calls."""

    def close(self) -> None:
        """Nothing to give back."""


def embedded_sampler(policy: Policy, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> EmbeddedSampler:
    """A sampler of this policy's own module; batch_size: sequences at once."""
    return EmbeddedSampler(
        policy.model,
        stop_token_ids=stop_token_ids(policy.model, tokenizer),
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        batch_size=batch_size,
        whole=partial(whole, policy),
    )


def make_embedded(parts: SamplerParts) -> EmbeddedSampler:
    """The sampler `embedded`: the policy's own module."""
    return embedded_sampler(parts.policy, parts.tokenizer, parts.config.batch_size)
