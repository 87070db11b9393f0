"""The chunk driver: hidden states → logits → loss and gradients, a chunk of rows at a time, for either row kernel.

    buffer ← X_c·Wᵀ        row kernel: buffer ← ∂L/∂buffer        dX_c ← buffer·W        dW += bufferᵀ·X_c

Three matrix products, because the row kernel forms the gradient while the logits are there: nothing is recomputed in
the backward. Rows that carry no gradient are taken out before the first product. dX is complete within its chunk; dW is
summed over chunks in fp32. A row kernel is a module with `score_rows` and `policy_rows` (`native`, `triton_rows`).
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from .losses import Head, TokenLoss
from .rows import HeadTail, RowResults, TokenRows, check_coefficients

CPU_LOGIT_BYTES = 256 << 20
CPU_GIVEN_LOGIT_BYTES = 64 << 20  # dW summed into a buffer that is there anyway: more chunks cost little
CPU_CACHE_BYTES = 4 << 20
CUDA_LOGIT_BYTES = 1 << 30
CUDA_MIN_ROWS = 4096
SLICE_BYTES = 8 << 20


@dataclass(frozen=True)
class Wanted:
    """Which gradients to form: each one left out saves its matrix product."""

    hidden: bool
    weight: bool
    bias: bool = False

    @property
    def any(self) -> bool:
        return self.hidden or self.weight or self.bias


@dataclass(frozen=True)
class LinearResult:
    """loss () fp32; rows; gradients of the loss in their inputs' dtypes, or None where not wanted."""

    loss: Tensor
    rows: RowResults
    grad_hidden: Tensor | None
    grad_weight: Tensor | None
    grad_bias: Tensor | None


def chunk_rows(num_rows: int, weight_VH: Tensor, spare_bytes: int = 0, *, has_buffer: bool = False) -> int:
    """Rows per chunk: as many as the byte budget holds, evenly spread; all of them where the budget and
    `spare_bytes` (what several chunks would need on top, an fp32 dW) hold them at once. Beside a head that stays
    in a CPU's cache, the logits stay there too. has_buffer: dW has an fp32 buffer of the caller's."""
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
    """dW over chunks. One chunk: a product in the weight's dtype. Several, or into a given buffer: summed in fp32."""

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


def _check_head(hidden: Tensor, head: Head, grad_weight: Tensor | None) -> None:
    if hidden.ndim != 2 or head.weight.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"hidden must be (N,H) and weight (V,H), got {tuple(hidden.shape)} and {tuple(head.weight.shape)}"
        )
    if hidden.dtype != head.weight.dtype or hidden.device != head.weight.device:
        raise ValueError(
            f"hidden and weight must agree, got {hidden.dtype} on {hidden.device}"
            f" and {head.weight.dtype} on {head.weight.device}"
        )
    if head.bias is not None and head.bias.shape != head.weight.shape[:1]:
        raise ValueError(f"bias must be of shape {tuple(head.weight.shape[:1])}, got {tuple(head.bias.shape)}")
    if grad_weight is not None and (grad_weight.dtype != torch.float32 or grad_weight.shape != head.weight.shape):
        raise ValueError(
            f"grad_weight must be float32 of shape {tuple(head.weight.shape)},"
            f" got {grad_weight.dtype} {tuple(grad_weight.shape)}"
        )


def check_possible(bad: int, start: int, rows: TokenRows, index: Tensor | None) -> None:
    """bad: a chunk's first row whose target has logit −inf, or −1; index: the rows' numbers if some were left out."""
    if bad >= 0:
        row = start + bad if index is None else int(index[start + bad])
        target = int(rows.targets[start + bad])
        raise ValueError(f"row {row}: the logit of target {target} is -inf, it cannot have been sampled")


def _score_chunks(
    kernel: ModuleType, hidden: Tensor, head: Head, rows: TokenRows, out: RowResults, index: Tensor | None
) -> None:
    weight, tail, num_rows = head.weight.detach(), HeadTail.of(head), hidden.shape[0]
    size = chunk_rows(num_rows, weight)
    buffer = hidden.new_empty(min(size, num_rows), weight.shape[0])
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        logits = torch.mm(hidden[start:stop], weight.t(), out=buffer[: stop - start])
        bad = kernel.score_rows(logits, rows.take(slice(start, stop)), tail, out.narrow(start, stop))
        check_possible(bad, start, rows, index)


def _train_chunks(
    kernel: ModuleType,
    hidden: Tensor,
    head: Head,
    rows: TokenRows,
    loss: TokenLoss,
    wanted: Wanted,
    grad_weight: Tensor | None,
    out: RowResults,
    index: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    weight, tail, num_rows = head.weight.detach(), HeadTail.of(head), hidden.shape[0]
    has_spare = wanted.weight and grad_weight is None and weight.dtype != torch.float32
    spare_bytes = 4 * weight.numel() if has_spare else 0
    size = chunk_rows(num_rows, weight, spare_bytes, has_buffer=grad_weight is not None)
    buffer = hidden.new_empty(min(size, num_rows), weight.shape[0])
    grad_hidden = hidden.new_empty(hidden.shape) if wanted.hidden else None
    head_gradient = HeadGradient(weight, size >= num_rows, grad_weight) if wanted.weight else None
    grad_bias = torch.zeros(weight.shape[0], device=hidden.device) if wanted.bias else None
    for start in range(0, max(num_rows, 1), size):
        stop = min(start + size, num_rows)
        logits = torch.mm(hidden[start:stop], weight.t(), out=buffer[: stop - start])
        bad = kernel.policy_rows(logits, rows.take(slice(start, stop)), tail, loss, out.narrow(start, stop), wanted.any)
        check_possible(bad, start, rows, index)
        if grad_hidden is not None:
            torch.mm(logits, weight, out=grad_hidden[start:stop])
        if head_gradient is not None:
            head_gradient.add(logits, hidden[start:stop])
        if grad_bias is not None:
            grad_bias += logits.sum(0, dtype=torch.float32)
    grad_head = None if head_gradient is None else head_gradient.result()
    return grad_hidden, grad_head, None if grad_bias is None else grad_bias.to(head.bias.dtype)


def _active_index(advantages: Tensor, loss: TokenLoss, device: torch.device) -> Tensor | None:
    """Rows that carry gradient, or None for all. Advantages on a GPU cost a synchronisation here, on the host none."""
    if loss.has_regulariser:
        return None
    index = advantages.nonzero().squeeze(-1)
    return None if index.shape[0] == advantages.shape[0] else index.to(device, non_blocking=True)


@torch.no_grad()
def token_logprobs(kernel: ModuleType, hidden: Tensor, head: Head, rows: TokenRows) -> RowResults:
    """Log-probs and entropy of every row: one matrix product."""
    _check_head(hidden, head, None)
    out = RowResults.empty(len(rows), hidden.device)
    _score_chunks(kernel, hidden.detach(), head, rows, out, None)
    return out


@torch.no_grad()
def linear_policy_loss(
    kernel: ModuleType,
    hidden: Tensor,
    head: Head,
    rows: TokenRows,
    loss: TokenLoss,
    wanted: Wanted,
    *,
    score_all: bool = False,
    grad_weight: Tensor | None = None,
    host_advantages: Tensor | None = None,
) -> LinearResult:
    """Loss and the wanted gradients of all rows; see `fastrl.kernels.linear_policy_loss`.

    host_advantages: the advantages where the caller has them, so that finding the zeros need not wait for a GPU.
    """
    _check_head(hidden, head, grad_weight)
    check_coefficients(loss, rows)
    hidden = hidden.detach()
    advantages = rows.advantages if host_advantages is None else host_advantages
    index = _active_index(advantages, loss, hidden.device)
    if index is None:
        out = RowResults.empty(len(rows), hidden.device)
        grads = _train_chunks(kernel, hidden, head, rows, loss, wanted, grad_weight, out, None)
        return LinearResult(out.total_loss(), out, *grads)
    part = RowResults.empty(index.shape[0], hidden.device)
    part_hidden, head_grad, bias_grad = _train_chunks(
        kernel, hidden[index], head, rows.take(index), loss, wanted, grad_weight, part, index
    )
    out = RowResults.empty(len(rows), hidden.device)
    out.put(index, part)
    grad_hidden = None if part_hidden is None else hidden.new_zeros(hidden.shape).index_copy_(0, index, part_hidden)
    if score_all:
        idle = (advantages == 0).nonzero().squeeze(-1).to(hidden.device, non_blocking=True)
        scored = RowResults.empty(idle.shape[0], hidden.device)
        _score_chunks(kernel, hidden[idle], head, rows.take(idle), scored, idle)
        out.put(idle, scored)
    return LinearResult(part.total_loss(), out, grad_hidden, head_grad, bias_grad)
