"""Token by token, the text of a completion, as a viewer shows it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what a part of a character decodes to


class Pieces:
    """The text of each token behind another one; what was decoded once is remembered.

    Tokens that only together are a character have its text at the last of them and none before. The pieces of a
    completion are its text, except where a tokenizer's decoder looks at more than its neighbours.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        anchor = tokenizer("1", add_special_tokens=False).input_ids[-1:] or [0]  # else a word's own space would go
        self._anchor, self._skipped = anchor, len(self._decoded(anchor))

    def of(self, ids: Sequence[int]) -> list[str]:
        """One text per token, special tokens included."""
        pieces = [self._piece(token) for token in ids]
        start = 0
        while start < len(pieces):
            end = start + 1
            if BROKEN in pieces[start]:
                while end < len(pieces) and BROKEN in pieces[end]:
                    end += 1
                pieces[start:end] = [""] * (end - start - 1) + [self._behind_anchor(ids[start:end])]
            start = end
        return pieces

    def _piece(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._behind_anchor([token])
        return self._known[token]

    def _behind_anchor(self, ids: Sequence[int]) -> str:
        return self._decoded([*self._anchor, *ids])[self._skipped :]

    def _decoded(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
