"""GSPO, DAPO and PMPO: the gradient of an update against autograd of the paper's formula, on a tiny random model."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rollout_cases import batch_of, rows_of
from test_update import GROUP, NUM_PROMPTS, rollouts_of

from fastrl.config.algorithm import AlgorithmConfig, chosen
from fastrl.config.files import load_config
from fastrl.config.schema import BatchConfig, OptimizerConfig, SamplerConfig, TrainConfig
from fastrl.kernels import TokenLoss
from fastrl.learning.objectives import OBJECTIVES, Pmpo, objective_credits
from fastrl.learning.sequence_surrogates import Gspo
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.rollouts import Rollouts
from fastrl.update import Updater, token_loss

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
REWARDS = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]
MAX_NEW_TOKENS = 14


class Followed(MasterOptimizer):
    """Keeps the model before each update, and the update's gradient."""

    def __init__(self, policy: Policy, config: OptimizerConfig):
        super().__init__(policy, config, 10)
        self.model, self.updates = policy.model, []

    def _update(self) -> None:
        self.updates.append((copy.deepcopy(self.model), [m.grad.clone() for m in self.masters.values()]))
        super()._update()


@dataclass
class Run:
    """Of one batch: rollouts with rewards, metrics, and of each update the model before it, gradient, mini-batch."""

    batch: Rollouts
    metrics: dict
    updates: list


def run(model, algorithm: AlgorithmConfig, *, lr: float, reference: Policy | None = None) -> Run:
    algorithm = replace(algorithm, updates_per_batch=2)
    config = TrainConfig(
        algorithm=algorithm,
        batch=BatchConfig(NUM_PROMPTS, GROUP, 40),
        optimizer=OptimizerConfig(lr=lr, max_grad_norm=0.0),
        sampler=SamplerConfig(max_new_tokens=MAX_NEW_TOKENS),
    )
    batch = batch_of(rollouts_of(model, [0.0] * len(REWARDS)))
    penalties_R = algorithm.overlong(batch.completion_lengths_R, MAX_NEW_TOKENS)
    batch = replace(batch, rewards_R=np.array(REWARDS), penalties_R=penalties_R)
    credits_N = objective_credits(chosen(algorithm, OBJECTIVES, algorithm.objective), batch, batch.rewards_R >= 1)
    batch = replace(batch, credits_N=credits_N.astype(np.float32))
    policy = Policy(copy.deepcopy(model), token_loss(algorithm))
    optimizer = Followed(policy, config.optimizer)
    updater = Updater(policy, optimizer, config, reference=reference)
    parts = updater._cut(batch)
    metrics = updater.run(batch)
    return Run(batch, metrics, [(*update, part) for update, part in zip(optimizer.updates, parts, strict=True)])


def logprobs_of(model, part: Rollouts) -> list[torch.Tensor]:
    """Of each completion's tokens, differentiable."""
    found = []
    for row in rows_of(part):
        table = model(torch.tensor([row.ids])).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
        found.append(table.gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0])
    return found


def normalised(rewards_R: np.ndarray) -> np.ndarray:
    """(r − mean) / (std + 1e-6) by group, as GRPO has it."""
    rewards_PG = rewards_R.reshape(-1, GROUP)
    std_P1 = rewards_PG.std(axis=1, ddof=1, keepdims=True)
    return ((rewards_PG - rewards_PG.mean(axis=1, keepdims=True)) / (std_P1 + 1e-6)).ravel()


def assert_gradient(model, objective: torch.Tensor, gradient: list[torch.Tensor]) -> None:
    """`gradient` is that of a loss, minus the objective."""
    expected = torch.autograd.grad(-objective, list(model.parameters()))
    scale = max(e.norm() for e in expected)
    assert scale > 1e-3
    for ours, theirs in zip(gradient, expected, strict=True):
        assert (ours - theirs).norm() <= 2e-4 * theirs.norm() + 1e-5 * scale


@pytest.mark.parametrize("bound", [3e-4, 0.02, 1e9])
def test_gspo_is_the_gradient_of_the_papers_objective(tiny_model, bound):
    """mean_i min(s_i A_i, clip(s_i, 1 − low, 1 + high) A_i), s_i = (π(y_i) / π_old(y_i))^(1/T_i), both mini-batches."""
    algorithm = load_config(TrainConfig, CONFIGS / "gspo.toml").algorithm
    low, high = min(bound, 0.9), bound * 4 / 3
    found = run(tiny_model, replace(algorithm, gspo=Gspo(low, high)), lr=3.7e-3)
    advantages = np.split(normalised(found.batch.rewards_R), 2)
    num_clipped = []
    for (model, gradient, part), advantages_R in zip(found.updates, advantages, strict=True):
        logprobs = logprobs_of(model, part)
        with torch.no_grad():
            old = logprobs_of(tiny_model, part)
        ratios = torch.stack([(new - o).mean().exp() for new, o in zip(logprobs, old, strict=True)])
        a = torch.tensor(advantages_R, dtype=torch.float32)
        terms = torch.minimum(ratios * a, ratios.clamp(1 - low, 1 + high) * a)
        num_clipped.append(int(((a > 0) & (ratios > 1 + high) | (a < 0) & (ratios < 1 - low)).sum()))
        if num_clipped[-1] < len(part):
            assert_gradient(model, terms.mean(), gradient)
    assert num_clipped[0] == 0 and (num_clipped[1] == 0) == (bound == 1e9)
    assert ratios.min() < 0.95 and ratios.max() > 1.02  # the policy had moved
    shares = found.metrics["clip/positive"], found.metrics["clip/negative"]
    assert (max(shares) > 0) == (bound < 1e9)


def test_gspo_scores_only_where_the_policy_has_moved(tiny_model):
    """One pass without gradient for each mini-batch but the first; the others take the sampler's log-probs as old."""
    algorithm = load_config(TrainConfig, CONFIGS / "gspo.toml").algorithm
    passes = []
    original = Updater._scores
    try:
        Updater._scores = lambda self, policy, parts: passes.append(len(parts)) or original(self, policy, parts)
        run(tiny_model, algorithm, lr=1e-3)
    finally:
        Updater._scores = original
    assert passes == [1]


def test_gspo_factors_by_hand():
    """exp of the mean gap over the tokens that the loss may use: 2 for the first, 1/2 for the others."""
    ln2 = np.log(2)
    batch = Rollouts.of([[1]] * 3, [[5, 5, 5], [5], [5]])
    batch = replace(
        batch,
        loss_mask_N=np.array([1, 0, 1, 1, 1], dtype=bool),
        old_logprobs_N=np.full(5, -3, dtype=np.float32),
        credits_N=np.array([-1, 0, -1, 1, -1], dtype=np.float32),
    )
    logprobs_N = np.array([-3 + 2 * ln2, np.nan, -3, -3 - ln2, -3 - ln2], dtype=np.float32)
    assert Gspo(0.4, 0.1)(batch, logprobs_N) == pytest.approx([2, 2, 2, 0.5, 0], abs=1e-6)
    assert Gspo(0.6, 0.1)(batch, logprobs_N) == pytest.approx([2, 2, 2, 0.5, 0.5], abs=1e-6)


def test_dapo_is_the_gradient_of_the_papers_objective(tiny_model):
    """1/Σ T_i Σ_i Σ_t min(ρ A, clip(ρ, 0.8, 1.28) A) over the mini-batch, A of rewards less the penalty for length."""
    algorithm = load_config(TrainConfig, CONFIGS / "dapo.toml").algorithm
    found = run(tiny_model, algorithm, lr=3.7e-3)
    lengths_R = found.batch.completion_lengths_R
    penalties_R = 0.5 * np.clip((MAX_NEW_TOKENS - 3 - lengths_R) / 3, None, 0)
    assert penalties_R.min() < 0 and penalties_R.max() == 0
    advantages = np.split(normalised(found.batch.rewards_R + penalties_R), 2)
    for (model, gradient, part), advantages_R in zip(found.updates, advantages, strict=True):
        with torch.no_grad():
            old = torch.cat(logprobs_of(tiny_model, part))
        ratio = (torch.cat(logprobs_of(model, part)) - old).exp()
        a = torch.tensor(part.by_token(advantages_R), dtype=torch.float32)
        terms = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
        assert_gradient(model, terms.sum() / part.num_tokens, gradient)
    assert ((a > 0) & (ratio > 1.28)).any() and ((a > 0) & (ratio > 1.2) & (ratio < 1.28)).any()
    assert algorithm.dynamic_sampling_rounds > 0 and algorithm.kl_coef == 0


def moved_copy(model, seed: int):
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.02)
    return moved


def test_pmpo_is_the_gradient_of_the_papers_objective(tiny_model):
    """α E₊ log π − (1 − α) E₋ log π of the first mini-batch, log π averaged over tokens; β k3 beside it."""
    algorithm = load_config(TrainConfig, CONFIGS / "pmpo.toml").algorithm
    algorithm = replace(algorithm, pmpo=Pmpo(alpha=0.3))
    reference = moved_copy(tiny_model, 5)
    model, gradient, part = run(tiny_model, algorithm, lr=0.0, reference=Policy(reference)).updates[0]
    means = torch.stack([values.mean() for values in logprobs_of(model, part)])
    with torch.no_grad():
        others = logprobs_of(reference, part)
    gaps = [other - own for other, own in zip(others, logprobs_of(model, part), strict=True)]
    k3 = torch.stack([(gap.exp() - gap - 1).mean() for gap in gaps])
    # of 12 rollouts 5 are right; this mini-batch holds the first 6, of which 3 are
    right = torch.tensor(REWARDS[:6]) == 1
    positive, negative = 12 / 5 * means[right].sum() / 6, 12 / 7 * means[~right].sum() / 6
    assert_gradient(model, 0.3 * positive - 0.7 * negative - algorithm.kl_coef * k3.mean(), gradient)


def test_the_kl_penalty_has_the_gradient_of_kl_from_the_reference(tiny_model):
    """Over all tokens that can come next, weighed by their probability: ∇ of the k3 loss is ∇KL(π_ref ‖ π)."""
    reference, prompt, vocab = moved_copy(tiny_model, 3), [4, 5, 6], 1500
    batch = Rollouts.of([prompt] * vocab, [[token] for token in range(vocab)])
    with torch.no_grad():
        theirs = reference(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    own = tiny_model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    weights = list(tiny_model.parameters())
    forward, backward = (theirs.exp() * (theirs - own)).sum(), (own.exp() * (own - theirs)).sum()
    wanted, other = (torch.autograd.grad(kl, weights, retain_graph=True) for kl in (forward, backward))
    policy = Policy(tiny_model, TokenLoss(kl_coef=1.0))
    batch = replace(batch, credits_N=np.zeros(vocab, np.float32), ref_logprobs_N=theirs.numpy())
    loss = policy(policy.micro_batch(batch, own.detach().exp().numpy())).loss
    assert loss.item() == pytest.approx(backward.item(), rel=1e-3)  # the value is that of KL(π ‖ π_ref)
    found = torch.autograd.grad(loss, weights)
    for ours, forward_grad, backward_grad in zip(found, wanted, other, strict=True):
        assert (ours - forward_grad).norm() <= 1e-3 * forward_grad.norm() + 1e-6
        assert (ours - backward_grad).norm() > 0.05 * backward_grad.norm()
