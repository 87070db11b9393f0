"""Texts of tokens: the completion's own, for tokenizers of bytes, of words with a mark, of characters."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fastrl.config.schema import ScratchConfig
from fastrl.policy.scratch import scratch_tokenizer
from fastrl.prompts.pieces import Pieces

TEXT = "Solve it: 12 + 34 = 46 \U0001f600 né\n  done"


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT.replace("\U0001f600", "")], trainers.BpeTrainer(initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def words_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.BpeTrainer(special_tokens=[f"<0x{i:02X}>" for i in range(256)])
    tokenizer.train_from_iterator([TEXT.replace("\U0001f600", "")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.mark.parametrize("make", [bytes_tokenizer, words_tokenizer])
def test_pieces_are_the_text(make):
    tokenizer = make()
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    whole = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    pieces = Pieces(tokenizer).of(ids)
    assert len(pieces) == len(ids) and "\U0001f600" in whole
    assert "".join(pieces).lstrip(" ") == whole.lstrip(" ") and "\ufffd" not in "".join(pieces)
    assert "" in pieces  # the face is several tokens: its text is at the last of them
    assert " +" in pieces or " + " in "".join(pieces)


def test_a_part_of_a_character_at_the_end_is_seen():
    tokenizer = bytes_tokenizer()
    ids = tokenizer("a\U0001f600", add_special_tokens=False).input_ids[:-1]
    assert "".join(Pieces(tokenizer).of(ids)) == "a\ufffd"


def test_special_tokens_have_a_text():
    tokenizer = scratch_tokenizer(ScratchConfig())
    assert Pieces(tokenizer).of([*tokenizer("1+2").input_ids, tokenizer.eos_token_id]) == ["1", "+", "2", "<eos>"]
    assert Pieces(tokenizer).of([]) == []
