"""Who runs in the GPU table: ours, eager, torch.compile, and every peer that can be imported, as its users call it.

A contestant runs one forward and backward on its data (Logits or Linear) and returns the gradients, or the scores.
Peers, called as liger-kernel 0.8.5, cut-cross-entropy 25.1.1, trl 1.16.0 and quack-kernels 0.6.5 (which needs
nvidia-cutlass-dsl) want it, and verl's Triton kernel as the skyrl wheel carries it. A peer that is missing or fails is
a row that says so.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import baselines
import torch
from torch import Tensor

from fastrl.kernels import Head, TokenLoss, TokenRows, linear_policy_loss, policy_loss
from fastrl.kernels.dispatch import choose, forced_backend, row_kernel
from fastrl.kernels.rows import HeadTail, RowResults

SEQUENCE = 1024  # tokens, for peers whose chunk is a sequence


@dataclass(frozen=True)
class Logits:
    """logits (N,V); targets (N,) int64; coefficients (N,) fp32: signed advantages times token weights."""

    logits: Tensor
    targets: Tensor
    coefficients: Tensor


@dataclass(frozen=True)
class Linear:
    hidden: Tensor
    weight: Tensor
    targets: Tensor
    coefficients: Tensor


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def score_ours(data: Logits) -> tuple[Tensor, Tensor]:
    out = RowResults.empty(len(data.logits), data.logits.device)
    rows = TokenRows(data.targets).checked(*data.logits.shape, data.logits.device)
    kernel = row_kernel(choose("token_logprobs", data.logits.device, data.logits.dtype).backend)
    kernel.score_rows(data.logits, rows, HeadTail(), out)
    return out.logprobs, out.entropy


def logits_ours(data: Logits):
    leaf = data.logits.detach().requires_grad_()
    return gradients(policy_loss(leaf, TokenRows(data.targets, data.coefficients), TokenLoss()).loss, leaf)


def logits_eager(data: Logits, function: Callable = baselines.logits_loss):
    leaf = data.logits.detach().requires_grad_()
    return gradients(function(leaf, data.targets, data.coefficients)[0], leaf)


def linear_ours(data: Linear):
    result = linear_policy_loss(data.hidden, Head(data.weight), TokenRows(data.targets, data.coefficients), TokenLoss())
    return gradients(result.loss, data.hidden, data.weight)


def linear_eager(data: Linear, function: Callable = baselines.linear_loss):
    loss = function(data.hidden, data.weight, data.targets, data.coefficients)[0]
    return gradients(loss, data.hidden, data.weight)


def launched(is_cluster: bool, run: Callable, options: dict[str, int] | None = None) -> Callable:
    """`run` on one of the two Triton row kernels, in its usual shape or with these options."""

    def on_that_kernel(data: Logits):
        from fastrl.kernels import triton_launch, triton_rows

        vocab, itemsize = data.logits.shape[1], data.logits.element_size()
        sizes = options or (
            triton_launch.cluster_options(vocab, itemsize, triton_launch.MAX_TILES, 8)
            if is_cluster
            else triton_launch.sweep_options(vocab, has_second_sweep=run is not score_ours)
        )
        launch, kept = triton_launch.Launch(is_cluster, sizes, "for comparison"), triton_rows.choose_launch
        triton_rows.choose_launch = lambda *_, **__: launch
        try:
            with forced_backend("triton"):
                return run(data)
        finally:
            triton_rows.choose_launch = kept

    return on_that_kernel


def score_contestants() -> Iterator[tuple[str, Callable]]:
    yield "fastrl", score_ours
    yield "fastrl, sweeps", launched(False, score_ours)
    yield "fastrl, cluster", launched(True, score_ours)
    yield "eager", lambda data: baselines.scores(data.logits, data.targets)
    yield "compiled", lambda data: baselines.compiled(baselines.scores)(data.logits, data.targets)
    yield "liger fused_selective_log_softmax (no entropy)", liger_scores


def liger_scores(data: Logits):
    from liger_kernel.transformers.grpo_loss import fused_selective_log_softmax

    padded = data.logits.unsqueeze(0)  # (B, L+1, V): the last position is dropped
    return fused_selective_log_softmax(padded, data.targets[:-1].unsqueeze(0), 1.0, None)


def logits_contestants() -> Iterator[tuple[str, Callable]]:
    yield "fastrl", logits_ours
    yield "fastrl, sweeps", launched(False, logits_ours)
    yield "fastrl, cluster", launched(True, logits_ours)
    yield "eager", logits_eager
    yield "compiled", lambda data: logits_eager(data, baselines.compiled(baselines.logits_loss))
    yield "liger triton_grpo_loss (a weight per sequence, no entropy)", liger_grpo
    yield "quack cross_entropy (no weights, no entropy)", quack_cross_entropy


def liger_grpo(data: Logits):
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    leaf = data.logits.detach().unsqueeze(0).requires_grad_()
    loss = triton_grpo_loss(
        leaf, None, None, data.targets[:-1].unsqueeze(0), data.coefficients[:1],
        torch.ones_like(data.targets[:-1]).unsqueeze(0), temperature=1.0, beta=0.0, reduce=True,
    )[0]  # fmt: skip
    return gradients(loss, leaf)


def quack_cross_entropy(data: Logits):
    from quack import cross_entropy

    leaf = data.logits.detach().requires_grad_()
    return gradients(cross_entropy(leaf, data.targets, reduction="none", inplace_backward=True).sum(), leaf)


def linear_peers() -> Iterator[tuple[str, Callable]]:
    yield "eager", linear_eager
    yield "compiled", lambda data: linear_eager(data, baselines.compiled(baselines.linear_loss))
    yield "liger FLCE (no weights)", liger_flce
    yield "liger fused linear GRPO (a weight per sequence)", liger_linear_grpo
    yield "cut-cross-entropy", cut_cross_entropy
    yield "trl chunked log-probs", trl_chunked
    yield "verl triton (in skyrl)", verl_triton
    yield "quack chunked linear CE (no weights)", quack_linear
    yield "liger SM90 scaled CE", liger_sm90


def liger_flce(data: Linear):
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)(data.weight, data.hidden, data.targets)
    return gradients(loss, data.hidden, data.weight)


def liger_linear_grpo(data: Linear):
    """A chunk is a sequence, so the rows are sequences of a usual length rather than a single one."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    hidden, targets = (x.unflatten(0, (-1, min(len(x), SEQUENCE))) for x in (data.hidden, data.targets))
    operation = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False)
    advantages = data.coefficients[: len(targets)]
    loss = operation(hidden, data.weight, targets, torch.ones_like(targets), advantages)[0]
    return gradients(loss, data.hidden, data.weight)


def cut_cross_entropy(data: Linear):
    from cut_cross_entropy import linear_cross_entropy

    losses = linear_cross_entropy(data.hidden, data.weight, data.targets, reduction="none", impl="cce")
    return gradients((losses * data.coefficients).sum(), data.hidden, data.weight)


def trl_chunked(data: Linear):
    from trl.kernels import ChunkedLogProbFunction

    bias, chunk_size, softcap, scale, outputs = None, 32768, None, 1.0, ("log_probs", "entropy")  # GRPOTrainer's
    arguments = data.hidden, data.weight, bias, data.targets, 1.0, chunk_size, softcap, scale, outputs
    logprobs = ChunkedLogProbFunction.apply(*arguments)[0]
    return gradients(-(logprobs * data.coefficients).sum(), data.hidden, data.weight)


def verl_triton(data: Linear):
    spec = importlib.util.find_spec("skyrl")
    if spec is None:
        raise ImportError("No module named 'skyrl'")
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / "backends/skyrl_train/distributed/megatron/fused_linear_logprob_triton.py"
    file_spec = importlib.util.spec_from_file_location("fused_linear_logprob_triton", path)
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    logprobs, _ = module.linear_cross_entropy(data.hidden, data.weight, data.targets, 1.0, "none", None)
    return gradients((logprobs * data.coefficients).sum(), data.hidden, data.weight)


def quack_linear(data: Linear):
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    loss = chunked_linear_cross_entropy(data.hidden, data.weight, data.targets, chunk_size=4096, reduction="sum")
    return gradients(loss, data.hidden, data.weight)


def liger_sm90(data: Linear):
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    out = LigerFusedLinearScaledCrossEntropyFunction.apply(data.hidden, data.weight, data.targets, 1.0, -100, 1, True)
    losses = out[0] if isinstance(out, tuple) else out
    return gradients((losses * data.coefficients).sum(), data.hidden, data.weight)
