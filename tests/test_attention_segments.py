"""What flash kernels are given, read by a plain loop, and what SDPA is given say the same about who sees whom."""

import inspect
import random

import pytest
import torch
from torch.nn.attention import varlen
from transformers import LlamaConfig

from fastrl.policy.attention import Pattern, _eager, _sdpa, _seen, _spans, _varlen, choose_attention
from fastrl.policy.attention_segments import RAGGED_SCORES, Layout


def random_layout(generator: random.Random, longest: int) -> Layout:
    """Prefixes, whole sequences, and completions in the order in which `packing` lays them."""
    prefixes = sorted(generator.randrange(1, longest) for _ in range(generator.randrange(0, 4)))
    whole = sorted(generator.randrange(1, longest) for _ in range(generator.randrange(0, 6)))
    continued = [(p, generator.randrange(1, longest), i) for i, p in enumerate(prefixes) for _ in range(3)]
    lengths = prefixes + whole + [length for _, length, _ in sorted(continued)]
    links = [None] * (len(prefixes) + len(whole)) + [i for *_, i in sorted(continued)]
    return Layout(tuple(lengths), tuple(links), len(prefixes))


def as_flash_kernels_do(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    tensors = query, *_seen(key, value, pattern.layout), *_spans(pattern.layout)
    return plain_loop(*tensors, pattern.scale, pattern.window)


def plain_loop(query, key, value, query_starts, key_starts, longest_query, longest_key, scale, window) -> torch.Tensor:
    """Segment by segment between the given starts: queries and keys aligned at their ends."""
    outputs = []
    for i in range(len(query_starts) - 1):
        q, k, v = (
            query[query_starts[i] : query_starts[i + 1]],
            *(t[key_starts[i] : key_starts[i + 1]] for t in (key, value)),
        )
        assert len(q) <= longest_query and len(k) <= longest_key
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        places_q, places_k = torch.arange(len(k) - len(q), len(k))[:, None], torch.arange(len(k))
        mask = places_k <= places_q
        if window is not None:
            mask &= places_k > places_q - window
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


def varlen_of_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """PyTorch's kernel cannot run here: its signature in 2.11, which wants a head of keys for each head of queries."""
    assert query.shape[1] == key.shape[1] == value.shape[1] and all(t.is_contiguous() for t in (query, key, value))
    window = None if window_size[0] == -1 else window_size[0] + 1
    return plain_loop(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window)


def varlen_of_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
    *, return_aux=None, scale=None, window_size=(-1, -1), enable_gqa=False, seqused_k=None, block_table=None,
    num_splits=None,
):  # fmt: skip
    """Its signature from 2.12 on."""
    assert (query.shape[1] != key.shape[1]) <= enable_gqa and all(t.is_contiguous() for t in (query, key, value))
    window = None if window_size[0] == -1 else window_size[0] + 1
    return plain_loop(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window)


@pytest.fixture(params=[_sdpa, _eager, varlen_of_2_11, varlen_of_2_12], ids=lambda f: f.__name__.strip("_"))
def attend(request, monkeypatch):
    """A packed attention; `_varlen` on either of PyTorch's signatures."""
    if request.param in (_sdpa, _eager):
        return request.param
    monkeypatch.setattr(varlen, "varlen_attn", request.param)
    return _varlen


def test_the_stand_ins_cover_this_torch():
    """The function that is installed is called as one of them is."""
    own, known = (inspect.signature(f).parameters for f in (varlen.varlen_attn, varlen_of_2_12))
    assert [*known][:7] == [*own][:7] and {"scale", "window_size"} <= own.keys()


@pytest.mark.parametrize(
    ("kernel", "num_key_heads", "says_so"),
    [(varlen_of_2_11, 2, True), (varlen_of_2_11, 4, False), (varlen_of_2_12, 2, False)],
)
@pytest.mark.parametrize("setting", ["auto", "varlen"])
def test_grouped_queries_stay_packed_on_every_torch(kernel, num_key_heads, says_so, setting, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=num_key_heads)
    choice = choose_attention(setting, torch.device("cuda"), torch.bfloat16, config)
    if choice.path.startswith("flash"):
        pytest.skip("flash-attn is installed")
    assert (choice.path, choice.is_packed) == ("varlen", True)
    assert ("keys and values are repeated" in choice.reason) == says_so


@pytest.mark.parametrize("window", [None, 1, 5, 1000])
@pytest.mark.parametrize("longest", [6, 60])
def test_buckets_and_flash_arguments_agree(attend, window, longest):
    """Outputs and gradients in float64, four query heads on two of keys."""
    generator = random.Random(longest)
    torch.manual_seed(0)
    for _ in range(8):
        layout = random_layout(generator, longest)
        if not layout.lengths:
            continue
        tensors = [torch.randn(sum(layout.lengths), h, 8, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2)]
        pattern = Pattern(layout, 0.3, window, None)
        ours, plain = attend(*tensors, pattern), as_flash_kernels_do(*tensors, pattern)
        assert torch.allclose(ours, plain, atol=1e-12)
        upstream = torch.randn_like(plain)
        gradients = [torch.autograd.grad(out, tensors, upstream) for out in (ours, plain)]
        assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*gradients, strict=True))


def test_buckets_follow_the_row_and_stay_small():
    """Equal lengths share a call whatever their number; a mask for each is bounded."""
    layout = Layout((50, 2000, 2000, *[300] * 400), (None, None, None, *[0] * 400), 1)
    assert [len(b.lengths_C) for b in layout.buckets] == [1, 2, 400]
    assert layout.buckets[-1].mask(None).shape == (1, 1, 300, 350)
    ragged = Layout((50, *range(300, 340), *range(300, 340)), (None, *[0] * 80), 1)
    assert sum(b.num_tokens for b in ragged.buckets) == sum(ragged.lengths)
    for bucket in ragged.buckets[1:]:
        mask = bucket.mask(None)
        assert mask.shape[0] == 1 and len(bucket.lengths_C) * mask[0].numel() <= RAGGED_SCORES
