"""What row kernels take and give: a few numbers per row, and what the head does after its matrix product."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .losses import Head, TokenLoss

HALF_TINY = 2.0**-24  # the smallest float16 above 0


@dataclass(frozen=True)
class TokenRows:
    """Everything that an operation is told about its N rows, apart from their hidden states or logits.

    targets (N,) int64: the token whose log-prob counts. advantages (N,), signed; needed by a loss. weights: a factor of
    each row's loss. temperature: logits are divided by it. old_logprobs, sampler_logprobs, ref_logprobs (N,): of the
    target under the policy before the update, the sampler and the reference; they carry no gradient.
    weights and temperature are one number for all rows or (N,). Tensors of another float dtype are converted to fp32.
    Any of them may lie on the host beside hidden states on a GPU: they are copied there without waiting.
    """

    targets: Tensor
    advantages: Tensor | None = None
    weights: float | Tensor = 1.0
    old_logprobs: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    temperature: float | Tensor = 1.0

    def __len__(self) -> int:
        return self.targets.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> "TokenRows":
        """The same rows with `function` applied to every tensor."""
        return replace(self, **{name: function(x) for name, x in vars(self).items() if isinstance(x, Tensor)})

    def take(self, index: Tensor | slice) -> "TokenRows":
        """The rows at `index`; numbers that all rows share stay."""
        return self.map(lambda x: x[index] if x.ndim else x)

    def to(self, device: torch.device) -> "TokenRows":
        """The same rows on `device`."""
        return self.map(lambda x: to_device(x, device))

    def checked(self, num_rows: int, vocab: int, device: torch.device) -> "TokenRows":
        """The form that row kernels read: on `device`, contiguous, fp32 but for the targets, numbers as () tensors.

        ValueError for a wrong shape or dtype, or a target outside [0, vocab); see `check_targets`.
        """
        check_targets(self.targets, num_rows, vocab)
        columns = {f.name: as_column(f.name, getattr(self, f.name), num_rows, device) for f in fields(self)[1:]}
        return TokenRows(to_device(self.targets, device).contiguous(), **columns)

    def check_for(self, loss: TokenLoss) -> None:
        """ValueError where `loss` needs a column that is missing."""
        if not isinstance(self.advantages, Tensor) or self.advantages.shape != self.targets.shape:
            found = tuple(self.advantages.shape) if isinstance(self.advantages, Tensor) else self.advantages
            raise ValueError(f"advantages must be of shape {tuple(self.targets.shape)}, got {found}")
        if loss.importance_cap is not None and self.sampler_logprobs is None:
            raise ValueError("importance_cap needs sampler_logprobs")
        if loss.kl_coef and self.ref_logprobs is None:
            raise ValueError("kl_coef needs ref_logprobs")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there. From the host to a GPU through pinned memory, so that the host does not wait for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def as_column(name: str, value: float | Tensor | None, num_rows: int, device: torch.device) -> Tensor | None:
    """`value` as fp32 on `device`, detached and contiguous: () or (N,). ValueError for another shape."""
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return torch.full((), float(value), device=device)
    if value.shape not in ((), (num_rows,)):
        raise ValueError(f"{name} must be a number or of shape ({num_rows},), got {tuple(value.shape)}")
    return to_device(value.detach().to(torch.float32), device).contiguous()


def check_targets(targets: Tensor, num_rows: int, vocab: int) -> None:
    """ValueError for targets of a wrong shape or dtype, or outside [0, vocab).

    The last is an assertion on the device for CUDA targets: it stops the run at the next synchronisation.
    """
    if targets.shape != (num_rows,) or targets.dtype != torch.int64:
        raise ValueError(f"targets must be int64 of shape ({num_rows},), got {targets.dtype} {tuple(targets.shape)}")
    if targets.is_cuda:
        is_inside = ((targets >= 0) & (targets < vocab)).all()
        torch._assert_async(is_inside, f"a target is outside the vocabulary [0, {vocab})")
    elif num_rows:
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= vocab:
            raise ValueError(f"target {low if low < 0 else high} is outside the vocabulary [0, {vocab})")


def check_half(rows: TokenRows, dtype: torch.dtype, device: torch.device, vocab: int) -> None:
    """ValueError for float16 gradients that would vanish: an even share of a row's, |w·A|/V, below float16's 2⁻²⁴.

    Weights of one over the number of tokens do that: multiply the weights by a power of two, and divide the gradients
    by it. CUDA values are not read; there the assertion is the device's.
    """
    if dtype != torch.float16 or rows.advantages is None or not rows.advantages.numel():
        return
    rows = rows.to(device)
    sizes_N = (rows.weights * rows.advantages).abs()
    is_lost = ((sizes_N > 0) & (sizes_N < vocab * HALF_TINY)).any()
    message = (
        "float16 gradients of these weights underflow: multiply the weights by a power of two (and divide the "
        "gradients by it in float32), or train in bfloat16 or float32"
    )
    if is_lost.is_cuda:
        torch._assert_async(~is_lost, message)
    elif is_lost:
        smallest = sizes_N[sizes_N > 0].min().item()
        raise ValueError(f"{message}; the smallest |weight·advantage| is {smallest:.3g}, at V = {vocab}")


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

    def narrow(self, part: slice) -> "RowResults":
        return RowResults(*(x[part] for x in vars(self).values()))

    def put(self, index: Tensor, part: "RowResults") -> None:
        """Copies the rows of `part` to the places in `index`."""
        for name, x in vars(self).items():
            x.index_copy_(0, index, getattr(part, name))

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
