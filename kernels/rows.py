"""What row kernels take and give: one number per row, in the form both back-ends share (fp32, checked, one device)."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .losses import Head, TokenLoss
from .reference import check_rows

HALF_TINY = 2.0**-24  # the smallest float16 above 0


@dataclass(frozen=True)
class TokenRows:
    """targets (N,) int64; the others (N,) fp32, or () for one number that all rows share, or None where absent."""

    targets: Tensor
    temperature: Tensor
    advantages: Tensor | None = None
    weights: Tensor | None = None
    old_logprobs: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None

    def __len__(self) -> int:
        return self.targets.shape[0]

    def take(self, index: Tensor | slice) -> "TokenRows":
        """The rows at `index`, contiguous."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: x[index] for name, x in columns.items() if x is not None and x.ndim})


@dataclass(frozen=True)
class RowResults:
    """logprobs, entropy, losses (weighted) (N,) fp32, NaN until written, and clipped (N,) bool, False until then."""

    logprobs: Tensor
    entropy: Tensor
    losses: Tensor
    clipped: Tensor

    @staticmethod
    def empty(num_rows: int, device: torch.device) -> "RowResults":
        numbers = torch.full((3, num_rows), float("nan"), device=device)
        return RowResults(*numbers.unbind(0), torch.zeros(num_rows, dtype=torch.bool, device=device))

    def narrow(self, start: int, stop: int) -> "RowResults":
        return RowResults(*(getattr(self, f.name)[start:stop] for f in fields(self)))

    def put(self, index: Tensor, part: "RowResults") -> None:
        """Copies the rows of `part` to the places in `index`."""
        for field in fields(self):
            getattr(self, field.name).index_copy_(0, index, getattr(part, field.name))

    def total_loss(self) -> Tensor:
        """() fp32, summed in fp64."""
        return self.losses.sum(dtype=torch.float64).float()


@dataclass(frozen=True)
class HeadTail:
    """What the head does after its matrix product: softcap·tanh(scale·(x + bias)/softcap). bias (V,) fp32 or None."""

    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @staticmethod
    def of(head: Head) -> "HeadTail":
        bias = None if head.bias is None else head.bias.detach().float().contiguous()
        return HeadTail(bias, head.scale, head.softcap)


def as_column(name: str, value: float | Tensor | None, num_rows: int, device: torch.device) -> Tensor | None:
    """`value` as fp32, detached and contiguous: () or (N,). ValueError for another shape."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return torch.full((), float(value), device=device)
    if value.shape not in ((), (num_rows,)):
        raise ValueError(f"{name} must be a number or of shape ({num_rows},), got {tuple(value.shape)}")
    return value.detach().to(device=device, dtype=torch.float32, non_blocking=True).contiguous()


def token_rows(
    targets: Tensor,
    vocab: int,
    num_rows: int,
    device: torch.device,
    temperature: float | Tensor,
    **columns: float | Tensor | None,
) -> TokenRows:
    """Checked rows. ValueError for a wrong shape or dtype, or (on CPU) a target outside [0, vocab)."""
    check_rows(targets, num_rows, vocab)
    checked = {name: as_column(name, value, num_rows, device) for name, value in columns.items()}
    if "advantages" in checked and (checked["advantages"] is None or checked["advantages"].shape != (num_rows,)):
        raise ValueError(f"advantages must be of shape ({num_rows},), got {columns['advantages']!r:.80}")
    return TokenRows(targets.contiguous(), as_column("temperature", temperature, num_rows, device), **checked)


def check_half(dtype: torch.dtype, token_weights: float | Tensor, advantages: Tensor, vocab: int) -> None:
    """ValueError for float16 gradients that would vanish: an even share of a row's, |w·A|/V, below float16's 2⁻²⁴.

    Weights of one over the number of tokens do that: scale token_weights by a power of two, and the gradients back.
    CUDA values are not read; there the assertion is the device's.
    """
    if dtype != torch.float16 or not advantages.numel():
        return
    sizes_N = (torch.as_tensor(token_weights, device=advantages.device) * advantages).abs()
    is_lost = ((sizes_N > 0) & (sizes_N < vocab * HALF_TINY)).any()
    message = (
        "float16 gradients of these token weights underflow: multiply token_weights by a power of two (and divide the "
        "gradients by it in float32), or train in bfloat16 or float32"
    )
    if is_lost.is_cuda:
        torch._assert_async(~is_lost, message)
    elif is_lost:
        smallest = sizes_N[sizes_N > 0].min().item()
        raise ValueError(f"{message}; the smallest |weight·advantage| is {smallest:.3g}, at V = {vocab}")


def check_coefficients(loss: TokenLoss, rows: TokenRows) -> None:
    """ValueError where a coefficient needs log-probs that are missing."""
    if loss.importance_cap is not None and rows.sampler_logprobs is None:
        raise ValueError("importance_cap needs sampler_logprobs")
    if loss.kl_coef and rows.ref_logprobs is None:
        raise ValueError("kl_coef needs ref_logprobs")
