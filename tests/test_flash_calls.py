"""What flash-attn's three packages are asked: their own parameters in their order, computed here by plain products.

The packages need a GPU and are not installed here; their kernels' results are compared where a model is loaded.
"""

import sys
from types import ModuleType

import pytest
import torch
from rollout_cases import Rollout, batch_of
from transformers import AutoModelForCausalLM, MistralConfig

from fastrl.policy.attention import use_packed_attention
from fastrl.policy.model import Policy

CONFIG = MistralConfig(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def attended(q, k, v, starts_q, starts_k, scale, window, softcap):
    """(T,H,D): causal from the end of each segment's keys, as all of them count. window: keys to the left, or None."""
    outputs = []
    for a, b, c, d in zip(starts_q[:-1], starts_q[1:], starts_k[:-1], starts_k[1:], strict=True):
        queries, keys, values = q[a:b], *(t[c:d].repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * scale
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        behind = torch.arange(d - c) - torch.arange(b - a)[:, None] - (d - c) + (b - a)
        is_seen = (behind <= 0) & (behind >= -(window if window is not None else d - c))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~is_seen, -torch.inf).softmax(-1), values))
    return torch.cat(outputs)


def flash_2_or_3(everywhere):
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size, softcap
    ):
        assert causal and max_seqlen_q == cu_seqlens_q.diff().max() and max_seqlen_k == cu_seqlens_k.diff().max()
        left, right = window_size
        assert right == (everywhere if left == everywhere else 0) and cu_seqlens_k.dtype == torch.int32
        window = None if left == everywhere else left
        return attended(q, k, v, cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), softmax_scale, window, softcap)

    return flash_attn_varlen_func


def flash_4(q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, **settings):
    """4.0.0b36: queries of another kind come before the starts; None is no window; (output, None) is returned."""
    assert qv is None
    return flash_2_or_3(None)(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **settings), None


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    ("path", "module", "function"),
    [
        ("flash_attention_2", "flash_attn", flash_2_or_3(-1)),
        ("flash_attention_3", "flash_attn_interface", flash_2_or_3(-1)),
        ("flash_attention_4", "flash_attn.cute", flash_4),
    ],
)
def test_a_packed_row_is_that_of_sdpa(path, module, function, window, monkeypatch):
    """Two completions share a prompt: their keys are those of the prompt and their own."""
    for name in {module.split(".")[0], module}:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[module].flash_attn_varlen_func = function
    torch.manual_seed(0)
    config = MistralConfig(**CONFIG.to_diff_dict() | {"sliding_window": window})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    rollouts = batch_of(
        [Rollout([5, 6, 7, 8], c, 1.0, group=g) for g, c in ((0, [9, 10]), (0, [11, 12, 13]), (1, [14]))]
    )
    rows = []
    for name in ("sdpa", path):
        assert use_packed_attention(model, name)
        policy = Policy(model)
        rows.append(policy.row(policy.micro_batch(rollouts)))
    torch.testing.assert_close(rows[1], rows[0], atol=1e-6, rtol=1e-5)
