"""What ends a completion, or a turn of a conversation: a token, or a text with the token that completes it.

Nothing is cut inside of a token: what was sampled is what is judged and trained, the end included. A text of several
tokens is found wherever it begins, because at every token that could complete one the text so far is looked at.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from fastrl.config.schema import SamplerConfig

if TYPE_CHECKING:  # the command line imports this file
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stops:
    """end_ids: tokens that end it. texts: what ends it, too. text_ids: tokens that may complete one of them."""

    end_ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    text_ids: frozenset[int] = frozenset()
    tokenizer: "PreTrainedTokenizerBase | None" = None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", end_ids: Collection[int], texts: Collection[str]) -> Self:
        """ValueError for a text at which nothing could end."""
        if not texts:
            return cls(frozenset(end_ids))
        vocabulary = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        text_ids = frozenset().union(*(_completing(text, vocabulary) for text in texts))
        return cls(frozenset(end_ids), tuple(texts), text_ids, tokenizer)

    def is_end(self, ids: Sequence[int]) -> bool:
        """Whether the last of these tokens ends them."""
        return ids[-1] in self.end_ids or (ids[-1] in self.text_ids and self.has_text(ids))

    def has_text(self, ids: Sequence[int]) -> bool:
        """Whether one of the texts stands at their end. A token more or less is a character more at least."""
        tail = self.tokenizer.decode(ids[-4 * max(map(len, self.texts)) - 4 :], skip_special_tokens=False)
        return any(text in tail for text in self.texts)

    def length(self, ids: Sequence[int]) -> int | None:
        """Tokens up to the first end, which counts; None without one."""
        may_end = self.end_ids | self.text_ids
        places = (t for t, token in enumerate(ids, start=1) if token in may_end)
        return next((t for t in places if self.is_end(ids[:t])), None)


NO_STOPS = Stops()


def chosen_stops(config: SamplerConfig, tokenizer: "PreTrainedTokenizerBase") -> Stops:
    """What sampler.stop and sampler.stop_token_ids ask for. ValueError for what could end nothing."""
    for token in config.stop_token_ids:
        if not 0 <= token < len(tokenizer):
            raise ValueError(
                f"sampler.stop_token_ids holds {token}; the tokenizer has tokens 0 to {len(tokenizer) - 1}"
            )
    return Stops.of(tokenizer, config.stop_token_ids, config.stop)


def _completing(text: str, vocabulary: Sequence[str]) -> list[int]:
    """Tokens that hold the last character of a text."""
    if not text or not text[-1].isascii() or text[-1] == " ":
        raise ValueError(f"the stop text {text!r} must end in an ASCII character that is no space")
    found = [i for i, token in enumerate(vocabulary) if text[-1] in token]
    if not found:
        raise ValueError(f"the stop text {text!r} ends nothing: no token of the tokenizer holds {text[-1]!r}")
    return found
