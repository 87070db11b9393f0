"""Random rows for the kernel tests, and the rule that says how close is close enough.

N rows, V vocabulary, H hidden. Every case has rows with advantage 0, rows with weight 0, and log-ratios to the old
policy on both sides of the usual clip ranges but never near their edges, where rounding would decide.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastrl.kernels import (
    Cispo,
    Head,
    PolicyLoss,
    PpoClip,
    TokenLoss,
    TokenRows,
    forced_backend,
    linear_policy_loss,
    policy_loss,
)
from fastrl.kernels.reference import head_logits, logits_statistics

EPSILON = 2.0**-23
PLAIN = TokenLoss()
CLIP = TokenLoss(PpoClip(0.2, 0.28, 3.0))
FULL = TokenLoss(PpoClip(0.2, 0.2), kl_coef=0.1, entropy_coef=0.05, importance_cap=1.3)
CAPPED = TokenLoss(Cispo(1.2), entropy_coef=0.2)
LOSSES = {"reinforce": PLAIN, "ppo_clip": CLIP, "clip_kl_entropy_importance": FULL, "cispo_entropy": CAPPED}


@dataclass(frozen=True)
class Case:
    hidden: Tensor
    head: Head
    rows: TokenRows

    def change(self, **columns: float | Tensor | None) -> "Case":
        """The same case with other columns of its rows."""
        return replace(self, rows=replace(self.rows, **columns))

    def to(self, dtype: torch.dtype) -> "Case":
        """The same numbers in another dtype; per-row numbers follow to fp64, and stay fp32 otherwise."""
        row_dtype = torch.promote_types(dtype, torch.float32)
        rows = self.rows.map(lambda x: x.to(row_dtype) if x.is_floating_point() else x)
        return self._moved(rows, lambda x: x.to(dtype))

    def on(self, device: str) -> "Case":
        """The same case on another device."""
        return self._moved(self.rows.to(torch.device(device)), lambda x: x.to(device))

    def _moved(self, rows: TokenRows, move: Callable[[Tensor], Tensor]) -> "Case":
        bias = None if self.head.bias is None else move(self.head.bias)
        return Case(move(self.hidden), replace(self.head, weight=move(self.head.weight), bias=bias), rows)

    @property
    def inputs(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.head.weight, self.head.bias) if x is not None]

    def logits(self) -> Tensor:
        return head_logits(self.hidden, self.head)


def make_case(
    num_rows: int, vocab: int, width: int, dtype: torch.dtype, *, seed: int = 0, has_bias: bool = False, **head
) -> Case:
    """Logits have a standard deviation of about 3; temperatures lie in [0.5, 1.5]."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    hidden, weight = normal(num_rows, width).to(dtype), (normal(vocab, width) * 3 / width**0.5).to(dtype)
    bias = (normal(vocab) * 0.5).to(dtype) if has_bias else None
    head = Head(weight, bias, **head)
    targets = torch.randint(0, vocab, (num_rows,), generator=generator)
    advantages, weights = normal(num_rows), uniform(num_rows)
    advantages[1::4] = 0
    weights[2::5] = 0
    temperature = 0.5 + uniform(num_rows)
    exact = Head(weight.double(), None if bias is None else bias.double(), head.softcap, head.scale)
    logprobs = logits_statistics(head_logits(hidden.double(), exact), targets, temperature.double())[0].float()
    steps = torch.tensor([-0.6, -0.1, 0.0, 0.1, 0.6, 1.4])
    old, sampler, ref = (
        logprobs - steps[torch.randint(0, len(steps), (num_rows,), generator=generator)] for _ in range(3)
    )
    return Case(hidden, head, TokenRows(targets, advantages, weights, old, sampler, ref, temperature))


def run_linear(
    case: Case, loss: TokenLoss, backend: str, upstream: float = 1.0, **options
) -> tuple[PolicyLoss, list[Tensor]]:
    """(result, gradients of upstream·loss in hidden, weight and bias)."""
    inputs = [x.detach().requires_grad_() for x in case.inputs]
    head = replace(case.head, weight=inputs[1], bias=inputs[2] if len(inputs) > 2 else None)
    with forced_backend(backend):
        result = linear_policy_loss(inputs[0], head, case.rows, loss, **options)
        return result, list(torch.autograd.grad(upstream * result.loss, inputs))


def run_logits(case: Case, logits: Tensor, loss: TokenLoss, backend: str) -> tuple[PolicyLoss, Tensor]:
    """(result, gradient in a copy of `logits`)."""
    leaf = logits.detach().clone().requires_grad_()
    with forced_backend(backend):
        result = policy_loss(leaf * 1, case.rows, loss)
        return result, torch.autograd.grad(result.loss, leaf)[0]


def assert_as_good(ours: Tensor, plain: Tensor, exact: Tensor, what: str, scale: Tensor | None = None) -> None:
    """err(ours) <= 2·err(plain torch in the same dtype) + 8 fp32 roundings, both against fp64, in the Frobenius norm.

    The roundings are those of `scale`, by default of the values themselves. (Which single element is worst is luck: in
    bf16 the rounding of one target logit decides it.)
    """
    assert ours.shape == exact.shape, f"{what}: shape {tuple(ours.shape)} instead of {tuple(exact.shape)}"
    error, allowed = (ours.double() - exact).norm(), (plain.double() - exact).norm()
    limit = 2 * allowed + 8 * EPSILON * (exact if scale is None else scale).norm()
    assert error <= limit, f"{what}: error {error:.3e}, plain torch {allowed:.3e}, limit {limit:.3e}"


def assert_results_as_good(ours: PolicyLoss, plain: PolicyLoss, exact: PolicyLoss) -> None:
    """Loss, log-probs and entropy by `assert_as_good` where computed, NaN in the same places, equal clipped flags."""
    for name in ("logprobs", "entropy"):
        mine, theirs, true = (getattr(x, name) for x in (ours, plain, exact))
        assert mine.dtype == torch.float32
        assert torch.equal(mine.isnan(), true.isnan()), f"{name}: NaN in other rows"
        assert_as_good(mine.nan_to_num(), theirs.nan_to_num(), true.nan_to_num(), name)
    assert torch.equal(ours.clipped, exact.clipped)
    scale = exact.logprobs.nan_to_num()  # the loss sums terms of this size and of both signs
    assert_as_good(ours.loss.detach(), plain.loss.detach(), exact.loss.detach(), "loss", scale)
