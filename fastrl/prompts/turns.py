"""Turns as tokens: where a turn of the model ends, what text it is, and what a reply of an environment becomes.

Nothing is tokenised twice. The model's tokens stay as they were sampled. A reply is tokenised alone, without special
tokens (it cannot forge a role), and put between the fixed tokens of the template: what ends the model's turn, unless
the model has, what opens the other side's, what opens the model's again.
"""

from collections.abc import Collection, Sequence
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fastrl.tasks import Problem, Task
from fastrl.tasks.templates import REPLIES

MODEL_WORDS, REPLY_WORDS = "these words are the model's", "these words are a reply"  # sought in a rendered chat
Frame = tuple[list[int], list[int]]  # tokens before and behind a reply


class TurnTokens:
    """Of a task's conversations. end_ids: end-of-sequence tokens.

    stop_ids: tokens at which a turn may end: those, and all that hold the last character of a stop text. At each of
    them `is_ended` looks at the text, so a stop text of several tokens is found wherever it begins, and no other.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]):
        """ValueError for a stop text at which no turn could end."""
        self.task, self.tokenizer, self.end_ids = task, tokenizer, frozenset(end_ids)
        self.stop_ids = tuple(sorted(self.end_ids.union(*map(self._tokens_with, task.limits.stop))))

    def _tokens_with(self, stop: str) -> list[int]:
        if not stop or not stop[-1].isascii() or stop[-1] == " ":
            raise ValueError(f"task.stop holds {stop!r}: a stop text ends in an ASCII character that is no space")
        found = [i for i, text in enumerate(self._vocabulary) if stop[-1] in text]
        if not found:
            raise ValueError(f"task.stop holds {stop!r}, and no token of the tokenizer holds {stop[-1]!r}")
        return found

    @cached_property
    def _vocabulary(self) -> list[str]:
        return self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])

    def is_ended(self, turn: Sequence[int]) -> bool:
        """Whether these tokens, the last of which is one of stop_ids or not, are a whole turn."""
        return turn[-1] in self.end_ids or any(stop in self.text(turn) for stop in self.task.limits.stop)

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
