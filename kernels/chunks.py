"""The chunk driver: hidden states → logits → loss and gradients, a chunk of rows at a time, for either row kernel.

    buffer ← X_c·Wᵀ        row kernel: buffer ← ∂L/∂buffer        dX_c ← buffer·W        dW += bufferᵀ·X_c

Three matrix products, because the row kernel forms the gradient while the logits are there: nothing is recomputed in
the backward. Rows without gradient are taken out before the first product. dX is complete within its chunk; dW is
summed over the chunks in fp32. A row kernel is a module (`native`, `triton_rows`) with `score_rows`, `policy_rows` and
`fused_surrogates`, the names of the surrogates that its `policy_rows` knows; `policy_rows` here serves all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from .losses import Head, TokenLoss
from .policy_rows import policy_rows
from .rows import HeadTail, RowResults, TokenRows, to_device

CPU_LOGIT_BYTES = 256 << 20
CPU_GIVEN_LOGIT_BYTES = 64 << 20  # dW summed into a buffer that is there anyway: more chunks cost little
CPU_CACHE_BYTES = 4 << 20
CUDA_LOGIT_BYTES = 1 << 30
CUDA_MIN_ROWS = 4096
SLICE_BYTES = 8 << 20


@dataclass(frozen=True)
class Wanted:
    """Which gradients to form: each one left out saves its matrix product.

    into: fp32 (V,H), to which the weight's gradient is added instead of being returned.
    """

    hidden: bool
    weight: bool
    bias: bool = False
    into: Tensor | None = None

    @staticmethod
    def of(hidden: Tensor, head: Head, into: Tensor | None = None) -> "Wanted":
        """What autograd asks for; under no_grad nothing."""
        if not torch.is_grad_enabled():
            return Wanted(False, False, into=into)
        has_bias = head.bias is not None and head.bias.requires_grad
        return Wanted(hidden.requires_grad, into is not None or head.weight.requires_grad, has_bias, into)

    @property
    def any(self) -> bool:
        return self.hidden or self.weight or self.bias


@dataclass(frozen=True)
class LinearResult:
    """loss () fp32; rows; gradients of the loss in their inputs' dtypes, or None where they were not asked for."""

    loss: Tensor
    rows: RowResults
    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None


def chunk_rows(num_rows: int, weight_VH: Tensor, spare_bytes: int = 0, *, has_buffer: bool = False) -> int:
    """Rows per chunk: as many as the byte budget holds, spread evenly.

    spare_bytes: what several chunks would need on top (an fp32 dW): all rows make one chunk where budget and spare hold
    them. has_buffer: the caller gives an fp32 buffer for dW. A head that stays in a CPU's cache has a budget that keeps
    the logits there, too.
    """
    row_bytes = weight_VH.shape[0] * weight_VH.element_size()
    if weight_VH.is_cuda:
        budget = max(CUDA_LOGIT_BYTES, CUDA_MIN_ROWS * row_bytes)
    elif 4 * weight_VH.numel() <= CPU_CACHE_BYTES:
        budget = CPU_CACHE_BYTES
    else:
        budget = CPU_GIVEN_LOGIT_BYTES if has_buffer else CPU_LOGIT_BYTES
    if num_rows * row_bytes <= budget + spare_bytes:
        return max(num_rows, 1)
    num_chunks = -(-num_rows // max(1, budget // row_bytes))
    return -(-num_rows // num_chunks)


class HeadGradient:
    """dW over chunks: one product in the weight's dtype where there is a single chunk, else a sum in fp32.

    into: the caller's fp32 buffer, to which every product is added.
    """

    def __init__(self, weight_VH: Tensor, is_single: bool, into: Tensor | None) -> None:
        self.total: Tensor | None = into
        self.dtype = weight_VH.dtype
        self.is_given = into is not None
        if not (is_single or self.is_given):
            self.total = torch.zeros(weight_VH.shape, dtype=torch.float32, device=weight_VH.device)

    def add(self, grad_logits_CV: Tensor, hidden_CH: Tensor) -> None:
        if self.total is None:
            self.total = torch.mm(grad_logits_CV.t(), hidden_CH)
        elif self.dtype == torch.float32:
            self.total.addmm_(grad_logits_CV.t(), hidden_CH)
        elif self.total.is_cuda:
            torch.addmm(self.total, grad_logits_CV.t(), hidden_CH, out_dtype=torch.float32, out=self.total)
        else:
            self._add_in_slices(grad_logits_CV, hidden_CH)

    def _add_in_slices(self, grad_logits_CV: Tensor, hidden_CH: Tensor) -> None:
        """On CPU mm has no fp32 output for bf16 inputs: each slice of the vocabulary is rounded once and added."""
        vocab, width = self.total.shape
        size = max(1, min(vocab, SLICE_BYTES // (width * hidden_CH.element_size())))
        product = hidden_CH.new_empty(size, width)
        for start in range(0, vocab, size):
            stop = min(start + size, vocab)
            part = torch.mm(grad_logits_CV[:, start:stop].t(), hidden_CH, out=product[: stop - start])
            self.total[start:stop].add_(part)

    def result(self) -> Tensor | None:
        return None if self.is_given else self.total.to(self.dtype)


class Gradients:
    """The wanted gradients, added up chunk by chunk."""

    def __init__(self, hidden: Tensor, head: Head, wanted: Wanted, *, is_single: bool) -> None:
        self.inputs, self.weight = hidden, head.weight.detach()
        self.bias_dtype = head.bias.dtype if wanted.bias else None
        self.hidden = hidden.new_empty(hidden.shape) if wanted.hidden else None
        self.head = HeadGradient(self.weight, is_single, wanted.into) if wanted.weight else None
        self.bias = torch.zeros(len(self.weight), device=hidden.device) if wanted.bias else None

    def add(self, part: slice, grad_logits_CV: Tensor) -> None:
        if self.hidden is not None:
            torch.mm(grad_logits_CV, self.weight, out=self.hidden[part])
        if self.head is not None:
            self.head.add(grad_logits_CV, self.inputs[part])
        if self.bias is not None:
            self.bias += grad_logits_CV.sum(0, dtype=torch.float32)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(hidden, weight, bias) in the inputs' dtypes; None where unwanted or in the caller's buffer."""
        weight = None if self.head is None else self.head.result()
        return self.hidden, weight, None if self.bias is None else self.bias.to(self.bias_dtype)


def _check_head(hidden: Tensor, head: Head, into: Tensor | None = None) -> None:
    weight, bias = head.weight, head.bias
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden must be (N,H) and weight (V,H), got {tuple(hidden.shape)} and {tuple(weight.shape)}")
    if hidden.dtype != weight.dtype or hidden.device != weight.device:
        raise ValueError(
            f"hidden and weight must agree, got {hidden.dtype} on {hidden.device} and {weight.dtype} on {weight.device}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be of shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if into is not None and (into.dtype != torch.float32 or into.shape != weight.shape):
        raise ValueError(
            f"grad_weight must be float32 of shape {tuple(weight.shape)}, got {into.dtype} {tuple(into.shape)}"
        )


def check_possible(bad: int, rows: TokenRows, start: int = 0, index: Tensor | None = None) -> None:
    """ValueError for a target that cannot have been sampled.

    bad: the first row of a chunk whose target has logit −inf, or −1; start: the chunk's first row; index: the caller's
    numbers of `rows`, where some were left out.
    """
    if bad >= 0:
        row = start + bad if index is None else int(index[start + bad])
        target = int(rows.targets[start + bad])
        raise ValueError(f"row {row}: the logit of target {target} is -inf, it cannot have been sampled")


def _chunks(hidden: Tensor, head: Head, size: int) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their logits before the head's tail) of each chunk, in one buffer. No rows make one empty chunk."""
    weight, num_rows = head.weight.detach(), hidden.shape[0]
    buffer = hidden.new_empty(min(size, num_rows), weight.shape[0])
    for start in range(0, max(num_rows, 1), size):
        part = slice(start, min(start + size, num_rows))
        yield part, torch.mm(hidden[part], weight.t(), out=buffer[: part.stop - start])


def _score_chunks(
    kernel: ModuleType, hidden: Tensor, head: Head, rows: TokenRows, index: Tensor | None = None
) -> RowResults:
    out, tail = RowResults.empty(len(rows), hidden.device), HeadTail.of(head)
    for part, logits in _chunks(hidden, head, chunk_rows(len(rows), head.weight)):
        bad = kernel.score_rows(logits, rows.take(part), tail, out.narrow(part))
        check_possible(bad, rows, part.start, index)
    return out


def _train_chunks(
    kernel: ModuleType,
    hidden: Tensor,
    head: Head,
    rows: TokenRows,
    loss: TokenLoss,
    wanted: Wanted,
    index: Tensor | None = None,
) -> LinearResult:
    out, tail, has_buffer = RowResults.empty(len(rows), hidden.device), HeadTail.of(head), wanted.into is not None
    has_spare = wanted.weight and not has_buffer and head.weight.dtype != torch.float32
    spare_bytes = 4 * head.weight.numel() if has_spare else 0
    size = chunk_rows(len(rows), head.weight, spare_bytes, has_buffer=has_buffer)
    gradients = Gradients(hidden, head, wanted, is_single=size >= len(rows))
    for part, logits in _chunks(hidden, head, size):
        bad = policy_rows(kernel, logits, rows.take(part), tail, loss, out.narrow(part), wanted.any)
        check_possible(bad, rows, part.start, index)
        gradients.add(part, logits)
    del logits  # before dW is rounded into another buffer
    return LinearResult(out.total_loss(), out, *gradients.result())


@torch.no_grad()
def token_logprobs(kernel: ModuleType, hidden: Tensor, head: Head, rows: TokenRows) -> RowResults:
    """Log-probs and entropy of every row: one matrix product."""
    _check_head(hidden, head)
    return _score_chunks(kernel, hidden.detach(), head, rows.checked(len(hidden), len(head.weight), hidden.device))


@torch.no_grad()
def linear_policy_loss(
    kernel: ModuleType,
    hidden: Tensor,
    head: Head,
    given: TokenRows,
    loss: TokenLoss,
    wanted: Wanted,
    *,
    score_all: bool = False,
) -> LinearResult:
    """Loss and the wanted gradients; see `ops.linear_policy_loss`. given: the rows as the caller has them.

    Which rows have an advantage is looked up where the advantages lie: on a GPU the host waits for the answer.
    """
    _check_head(hidden, head, wanted.into)
    hidden, device = hidden.detach(), hidden.device
    rows = given.checked(len(hidden), len(head.weight), device)
    given.check_for(loss)
    index = None if loss.has_regulariser else given.advantages.nonzero().squeeze(-1)
    if index is None or len(index) == len(rows):
        return _train_chunks(kernel, hidden, head, rows, loss, wanted)
    index, out = to_device(index, device), RowResults.empty(len(rows), device)
    part = _train_chunks(kernel, hidden[index], head, rows.take(index), loss, wanted, index)
    out.put(index, part.rows)
    if part.grad_hidden is not None:
        part = replace(part, grad_hidden=torch.zeros_like(hidden).index_copy_(0, index, part.grad_hidden))
    if score_all:
        idle = to_device((given.advantages == 0).nonzero().squeeze(-1), device)
        out.put(idle, _score_chunks(kernel, hidden[idle], head, rows.take(idle), idle))
    return replace(part, rows=out)
