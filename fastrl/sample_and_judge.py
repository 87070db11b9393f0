"""Drawing: problems → completions that are sampled and judged. Training, evaluation and the ledger all draw here.

Completions are judged by the verifier's processes while others are still being sampled, where the sampler hands them
over in parts. Conversations with an environment are played turn by turn (`sampling.conversations`).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from fastrl.policy.loading import stop_token_ids
from fastrl.policy.model import Policy
from fastrl.policy.packing import spread
from fastrl.process.stopwatch import Stopwatch
from fastrl.prompts.stops import NO_STOPS, Stops
from fastrl.prompts.tokens import completion_texts, prompt_ids
from fastrl.prompts.turns import TurnTokens
from fastrl.rollouts import Rollouts, decoded, encoded, text_column
from fastrl.sampling.conversations import Conversing
from fastrl.sampling.protocol import Sampler, SamplingSettings
from fastrl.tasks import Problem, Task
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verifier.pool import POOL_REASONS, VerifierPool
from fastrl.tasks.verifier.verdict import Verdict
from fastrl.tasks.verifier.worker import Call

BLOCK_TOKENS = 2_000_000  # new tokens that are held at once, at most, where not all are kept


@dataclass(frozen=True)
class Arena:
    """What it takes to draw: a task with its tokenizer, a sampler of the policy, and a verifier with its rule.

    models: by their role, what else can score completions. stops: what ends completions and turns besides the end of
    the sequence.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    verifier: VerifierPool
    policy: Policy
    correctness: Correctness
    models: Mapping[str, Policy] = field(default_factory=dict)
    stops: Stops = NO_STOPS

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a completion and are no part of its text."""
        return self.stops.end_ids.union(stop_token_ids(self.policy.model, self.tokenizer))

    @cached_property
    def turn_tokens(self) -> TurnTokens:
        """What turns and replies of the task's conversations are in tokens."""
        return TurnTokens(self.task, self.tokenizer, self.end_ids, self.stops.texts)

    def prompts(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Token ids of each problem's prompt."""
        return [prompt_ids(self.task, problem, self.tokenizer) for problem in problems]

    def draw(
        self,
        problems: Sequence[Problem],
        settings: SamplingSettings,
        seeds: Sequence[int],
        watch: Stopwatch | None = None,
        *,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> Rollouts:
        """num_samples judged rollouts of each problem, in the order of the problems, of which groups_R is the index.

        seeds: one a problem. prompts: token ids to draw behind, one a problem; None: the problems' own. Collective:
        ranks share the problems, and all get all. The time goes to `watch`, under generate, verify and exchange. Texts
        are not kept.
        """
        watch = watch or Stopwatch(self.policy.device)
        mine = [replace(b, texts_R=None) for b in self._blocks(problems, settings, seeds, watch, math.inf, prompts)]
        with watch("exchange"):
            return self.exchanged(mine)

    def blocks(
        self, problems: Sequence[Problem], settings: SamplingSettings, seeds: Sequence[int]
    ) -> Iterator[Rollouts]:
        """As `draw`, this rank's part alone, a few problems after the other: for those who keep little of each.

        All ranks get equally many blocks, the last of which may be empty: sampling gathers sharded weights.
        """
        return self._blocks(problems, settings, seeds, Stopwatch(self.policy.device), BLOCK_TOKENS)

    def write(self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, seeds: Sequence[int]) -> list[str]:
        """One text behind each prompt, judged by nobody, which no stop text ends. Collective, as `draw`."""
        ranks = self.policy.ranks
        part = spread([len(ids) for ids in prompts], ranks.world_size)[ranks.rank]
        request = [prompts[i] for i in part], replace(settings, num_samples=1), [seeds[i] for i in part]
        mine = Rollouts.concat([Rollouts.of([], []), *self.sampler.generate(*request)])
        mine = replace(mine, groups_R=np.array(part, dtype=np.int32)[mine.groups_R])
        return self.texts(self.exchanged([mine]))

    def texts(self, rollouts: Rollouts) -> list[str]:
        """What the verifier sees of each."""
        return completion_texts(self.tokenizer, rollouts, self.end_ids)

    def exchanged(self, mine: Sequence[Rollouts]) -> Rollouts:
        """All ranks' blocks as one batch, in the order of the problems."""
        arrays = self.policy.ranks.gather_arrays(encoded(dict(Rollouts.concat(mine).columns())))
        everyones = Rollouts.concat(Rollouts(**decoded(one)) for one in arrays)
        return everyones.take(np.argsort(everyones.groups_R, kind="stable"))

    def judge(self, problems: Sequence[Problem], rollouts: Rollouts) -> Rollouts:
        """The rollouts with what the verifier says of them; groups_R is the index of their problem.

        Conversations are played again, with the turns that they have.
        """
        of_rollout = [problems[i] for i in rollouts.groups_R.tolist()]
        if rollouts.turns_N is not None:
            tokens, own = self.turn_tokens, self._turns(rollouts)
            texts = [[tokens.text(turn) for turn in turns if tokens.is_ended(turn)] for turns in own]
            calls = [Call(p.prompt, turns, p.row) for p, turns in zip(of_rollout, texts, strict=True)]
            return self._counted(rollouts, self.verifier.play(calls))
        texts = self.texts(rollouts)
        verdicts = self.verifier.score([(p.prompt, text, p.row) for p, text in zip(of_rollout, texts, strict=True)])
        return self._counted(rollouts, verdicts, texts)

    def turns(self, rollouts: Rollouts) -> list[list[str]]:
        """The model's turns in each conversation, as the environment hears them, and one that was cut."""
        return [[self.turn_tokens.text(turn) for turn in turns] for turns in self._turns(rollouts)]

    def _turns(self, rollouts: Rollouts) -> list[list[list[int]]]:
        return [[rollouts.completion(i)[a:b].tolist() for a, b in rollouts.turns(i)] for i in range(len(rollouts))]

    def _counted(self, rollouts: Rollouts, verdicts: Sequence[Verdict], texts: Sequence[str] | None = None) -> Rollouts:
        texts = self.texts(rollouts) if texts is None else texts
        is_truncated = rollouts.is_truncated_R.tolist()
        counted = [
            self.correctness.reward(v.reward, is_truncated=cut) for v, cut in zip(verdicts, is_truncated, strict=True)
        ]
        is_wrong = self.correctness.truncated == "wrong"
        reasons = [
            "truncated" if cut and is_wrong and v.reward is not None and v.reason not in POOL_REASONS else v.reason
            for v, cut in zip(verdicts, is_truncated, strict=True)
        ]
        return replace(
            rollouts,
            rewards_R=np.array([math.nan if reward is None else reward for reward in counted], dtype=np.float64),
            reasons_R=text_column(reasons),
            answers_R=text_column(verdict.answer for verdict in verdicts),
            texts_R=text_column(texts),
            turn_rewards_N=None if rollouts.turns_N is None else _turn_rewards(rollouts, verdicts),
            parts_R=_parts(verdicts, len(self.task.parts)) if self.task.parts else None,
        )

    def _blocks(
        self,
        problems: Sequence[Problem],
        settings: SamplingSettings,
        seeds: Sequence[int],
        watch: Stopwatch,
        num_tokens: float,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> Iterator[Rollouts]:
        prompts, ranks = self.prompts(problems) if prompts is None else prompts, self.policy.ranks
        settings = replace(settings, stops=self.stops)
        parts = spread([len(ids) + settings.max_new_tokens for ids in prompts], ranks.world_size)
        longest = max(map(len, parts))
        size = max(1, int(min(longest, num_tokens / (settings.num_samples * settings.max_new_tokens))))
        for start in range(0, longest, size):
            block = parts[ranks.rank][start : start + size]
            request = [prompts[i] for i in block], settings, [seeds[i] for i in block]
            judge = self._played if self.verifier.unit() == "conversation" else self._judged
            judged = Rollouts.concat(judge([problems[i] for i in block], request, watch))
            judged = judged.take(np.argsort(judged.groups_R, kind="stable"))
            yield replace(judged, groups_R=np.array(block, dtype=np.int32)[judged.groups_R])

    def _judged(self, problems: Sequence[Problem], request: tuple, watch: Stopwatch) -> list[Rollouts]:
        """Each part of what the sampler makes of a request is judged in another thread while it makes the next.

        The last is judged here: a thread would only wait for this one to let it run.
        """
        judged, num_left = [], len(problems) * request[1].num_samples
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge")
        try:
            with watch("generate"):
                last = Rollouts.of([], [])
                for part in whole_groups(self.sampler.generate(*request), request[1].num_samples):
                    num_left -= len(part)
                    if num_left:
                        judged.append(thread.submit(self.judge, problems, part))
                    else:
                        last = part
            with watch("verify"):
                return [*(future.result() for future in judged), self.judge(problems, last)]
        finally:
            thread.shutdown(cancel_futures=True)

    def _played(self, problems: Sequence[Problem], request: tuple, watch: Stopwatch) -> list[Rollouts]:
        """As `_judged`, of conversations with an environment."""
        conversing = Conversing(self.sampler, self.verifier, self.turn_tokens, self.policy.ranks, watch)
        return [self._counted(*conversing.play(problems, *request))]


def _parts(verdicts: Sequence[Verdict], num_parts: int) -> np.ndarray:
    """See `Rollouts.parts_R`."""
    parts = [verdict.parts or (math.nan,) * num_parts for verdict in verdicts]
    return np.array(parts, dtype=np.float64).reshape(len(verdicts), num_parts)


def _turn_rewards(rollouts: Rollouts, verdicts: Sequence[Verdict]) -> np.ndarray:
    """See `Rollouts.turn_rewards_N`. A turn that was cut is worth nothing that anybody knows."""
    rewards_N = np.full(rollouts.num_tokens, np.nan, dtype=np.float32)
    for index, verdict in enumerate(verdicts):
        rewards = () if verdict.is_fault else verdict.turns
        for (start, end), reward in zip(rollouts.turns(index) if rewards else (), rewards, strict=False):
            rollouts.of_rollout(index, rewards_N)[start:end] = reward
    return rewards_N


def whole_groups(parts: Iterable[Rollouts], num_samples: int) -> Iterator[Rollouts]:
    """The same rollouts, cut so that all samples of a prompt come together, in order: a reward may compare them."""
    rest: Rollouts | None = None
    for part in parts:
        rest = part if rest is None else Rollouts.concat([rest, part])
        rest = rest.take(np.argsort(rest.groups_R, kind="stable"))
        is_whole_R = np.bincount(rest.groups_R)[rest.groups_R] == num_samples
        if is_whole_R.any():
            yield rest.take(is_whole_R)
        rest = rest.take(~is_whole_R)
    assert not rest, "the sampler left samples out"
