"""Turns as tokens: where a turn of the model ends, what text it is, and what a reply of an environment becomes.

Nothing is tokenised twice. The model's tokens stay as they were sampled. A reply is tokenised alone, without special
tokens (it cannot forge a role), and put between the fixed tokens of the template: what ends the model's turn, unless
the model has, what opens the other side's, what opens the model's again.
"""

from collections.abc import Collection, Sequence
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fastrl.prompts.stops import Stops
from fastrl.tasks import Problem, Task
from fastrl.tasks.templates import REPLIES

MODEL_WORDS, REPLY_WORDS = "these words are the model's", "these words are a reply"  # sought in a rendered chat
Frame = tuple[list[int], list[int]]  # tokens before and behind a reply


class TurnTokens:
    """Of a task's conversations. end_ids: end-of-sequence tokens, and others that end a turn. texts: what ends one
    besides `task.stop`.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Collection[int],
        texts: Collection[str] = (),
    ):
        """ValueError for a stop text at which no turn could end."""
        self.task, self.tokenizer, self.end_ids = task, tokenizer, frozenset(end_ids)
        self.stops = Stops.of(tokenizer, end_ids, tuple(dict.fromkeys((*task.limits.stop, *texts))))

    def is_ended(self, turn: Sequence[int]) -> bool:
        """Whether these tokens are a whole turn."""
        return self.stops.is_end(turn)

    def text(self, turn: Sequence[int]) -> str:
        """A turn's text, its stop text included, without the end-of-sequence token."""
        has_end = bool(turn) and turn[-1] in self.end_ids
        return self.tokenizer.decode(turn[: len(turn) - has_end], skip_special_tokens=False)

    def written(self, text: str) -> list[int]:
        """The tokens of a turn that is not sampled: with an end of the sequence where no stop text ends it."""
        ids = self._ids(text)
        return ids if ids and self.is_ended(ids) else [*ids, self.tokenizer.eos_token_id]

    def reply(self, problem: Problem, turn: Sequence[int], reply: str) -> tuple[list[int], bool]:
        """(what follows a turn up to the next, whether the reply was cut at task.max_reply_tokens)."""
        before, behind = self._chat_frame if self._is_chat(problem) else self._text_frame
        if before and before[0] == turn[-1] and turn[-1] in self.end_ids:
            before = before[1:]
        ids = self._ids(reply, split_special_tokens=True)
        most = self.task.limits.max_reply_tokens
        return [*before, *ids[:most], *behind], len(ids) > most

    def check(self, problem: Problem) -> None:
        """ValueError where the template cannot put a reply behind this problem."""
        self.reply(problem, [0], "")

    def _is_chat(self, problem: Problem) -> bool:
        return self.task.template == "chat" or not isinstance(problem.prompt, str)

    @cached_property
    def _text_frame(self) -> Frame:
        before, _, behind = REPLIES[self.task.template].partition("{reply}")
        return self._ids(before), self._ids(behind)

    @cached_property
    def _chat_frame(self) -> Frame:
        """What the tokenizer's chat template puts around a reply: sought in a chat that it renders."""
        turns = [("user", "a question"), ("assistant", MODEL_WORDS), ("user", REPLY_WORDS)]
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"the tokenizer's chat template cannot render a reply to the model ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]}); another task.template does without it"
            ) from error
        _, has_model, rest = text.partition(MODEL_WORDS)
        before, has_reply, behind = rest.partition(REPLY_WORDS)
        if not (has_model and has_reply):
            raise ValueError(
                "the tokenizer's chat template leaves out a turn of the model, or the reply to it: it renders "
                f"{text[:200]!r}; another task.template does without it"
            )
        return self._ids(before), self._ids(behind)

    def _ids(self, text: str, **how: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, **how).input_ids) if text else []
