"""Conversations: the model and an environment take turns, and what they say becomes one rollout.

    prompt │ turn 1 │ reply 1 │ turn 2 │ … │ turn n

All conversations take a turn together, then the environment replies to all of them, until each is over: the
environment ends it or fails, a turn is cut at its limit, the turns are used up, or another might not fit. A turn is
drawn with a seed of its conversation and its number, so a conversation does not depend on which others still run.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fastrl.process.ranks import Ranks
from fastrl.process.seeds import seed_of
from fastrl.process.stopwatch import Stopwatch
from fastrl.prompts.turns import TurnTokens
from fastrl.rollouts import Rollouts
from fastrl.sampling.protocol import Sampler, SamplingSettings, sample
from fastrl.tasks import Problem
from fastrl.tasks.verifier.pool import VerifierPool
from fastrl.tasks.verifier.verdict import Verdict
from fastrl.tasks.verifier.worker import Call


@dataclass
class Conversation:
    """One that is being played. ids, logprobs, turns: what follows the prompt, token by token, as in `Rollouts`.

    turn: the tokens of the model's newest turn.
    """

    group: int
    problem: Problem
    prompt: list[int]
    seed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    is_over: bool = False
    is_truncated: bool = False
    verdict: Verdict | None = None

    def add(self, ids: list[int], logprobs: list[float], turn: int) -> None:
        """Tokens of a turn, or of the reply to it (−turn)."""
        self.ids += ids
        self.logprobs += logprobs
        self.turns += [turn] * len(ids)

    def end(self, *, is_truncated: bool = False) -> None:
        self.is_over, self.is_truncated = True, is_truncated

    @property
    def call(self) -> Call:
        return Call(self.problem.prompt, self.texts, self.problem.row, self.replies)


@dataclass(frozen=True)
class Conversing:
    """What it takes: a sampler, the environment's workers, the task's tokens. The time goes to `watch`."""

    sampler: Sampler
    environment: VerifierPool
    tokens: TurnTokens
    ranks: Ranks
    watch: Stopwatch

    def play(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[list[int]],
        settings: SamplingSettings,
        seeds: Sequence[int],
    ) -> tuple[Rollouts, list[Verdict]]:
        """num_samples conversations of each problem, in order, and the verdict on each.

        settings.max_new_tokens: of a whole conversation, replies included. Ranks call this together: each plays until
        all are done, because sampling gathers sharded weights. ValueError for turns longer than conversations.
        """
        limits = self.tokens.task.limits
        check_limits(limits.max_turn_tokens, settings.max_new_tokens)
        settings = replace(settings, stops=self.tokens.stops)
        turn = replace(settings, max_new_tokens=limits.max_turn_tokens)
        everyone = [
            Conversation(i, problem, list(prompt), seed_of(seed, j))
            for i, (problem, prompt, seed) in enumerate(zip(problems, prompts, seeds, strict=True))
            for j in range(settings.num_samples)
        ]
        with self.watch("generate"):  # the first turn: samples of a problem share its prompt
            self._hear(everyone, sample(self.sampler, prompts, turn, seeds))
        turn, num_cut = replace(turn, num_samples=1, goes_on=True), 0
        while True:
            with self.watch("verify"):
                num_cut += self._answer(everyone, settings.max_new_tokens)
            running = [c for c in everyone if not c.is_over]
            if not any(self.ranks.gather(bool(running))):
                break
            with self.watch("generate"):
                sequences = [c.prompt + c.ids for c in running]
                own_seeds = [seed_of(c.seed, len(c.texts)) for c in running]
                self._hear(running, sample(self.sampler, sequences, turn, own_seeds))
        if num_cut:
            warnings.warn(
                f"{num_cut} replies of the environment were cut at task.max_reply_tokens = {limits.max_reply_tokens}",
                stacklevel=2,
            )
        return _rollouts(everyone), [c.verdict for c in everyone]

    def _hear(self, running: Sequence[Conversation], drawn: Rollouts) -> None:
        """Put the turns that were drawn behind their conversations."""
        for i, conversation in enumerate(running):
            conversation.turn = drawn.completion(i).tolist()
            logprobs = drawn.of_rollout(i, drawn.sampler_logprobs_N).tolist()
            conversation.add(conversation.turn, logprobs, len(conversation.texts) + 1)

    def _answer(self, everyone: Sequence[Conversation], max_new_tokens: int) -> int:
        """Let the environment reply to every turn that is whole. Returns how many replies were cut.

        A turn that is cut is not shown to it, but asks for the score.
        """
        heard = [c for c in everyone if not c.is_over]
        for c in heard:
            if self.tokens.is_ended(c.turn):
                c.texts.append(self.tokens.text(c.turn))
            else:
                c.end(is_truncated=True)
        verdicts = self.environment.play([c.call for c in heard])
        return sum(self._reply(c, verdict, max_new_tokens) for c, verdict in zip(heard, verdicts, strict=True))

    def _reply(self, c: Conversation, verdict: Verdict, max_new_tokens: int) -> bool:
        """Put a reply behind a conversation that goes on. Whether it was cut."""
        c.verdict, limits = verdict, self.tokens.task.limits
        if verdict.is_fault or (not c.is_over and verdict.is_done):
            c.end()
        if c.is_over:
            return False
        ids, is_cut = self.tokens.reply(c.problem, c.turn, verdict.reply)
        has_room = len(c.ids) + len(ids) + limits.max_turn_tokens <= max_new_tokens
        if len(c.texts) == limits.max_turns or not has_room:
            c.end(is_truncated=True)
            return False
        c.add(ids, [math.nan] * len(ids), -len(c.texts))
        c.replies.append(verdict.reply)
        return is_cut


def check_limits(max_turn_tokens: int, max_new_tokens: int) -> None:
    """ValueError for turns that are longer than a conversation."""
    if max_turn_tokens > max_new_tokens:
        raise ValueError(
            f"task.max_turn_tokens = {max_turn_tokens} exceeds max_new_tokens = {max_new_tokens}, the limit of a whole "
            "conversation with its replies: several turns are to fit"
        )


def _rollouts(conversations: Sequence[Conversation]) -> Rollouts:
    return Rollouts.of(
        [c.prompt for c in conversations],
        [c.ids for c in conversations],
        sampler_logprobs=[c.logprobs for c in conversations],
        is_truncated=[c.is_truncated for c in conversations],
        groups=[c.group for c in conversations],
        turns=[c.turns for c in conversations],
    )
