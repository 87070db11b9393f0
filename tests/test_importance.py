"""Importance weights by hand, the auto choice, and the gradient that they make in the updater."""

import math

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of, scores_of

from fastrl.config.algorithm import AlgorithmConfig, ImportanceConfig
from fastrl.config.schema import BatchConfig, OptimizerConfig, SamplerConfig, TrainConfig
from fastrl.learning.importance import choose_importance, importance_weights
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.rollouts import Rollouts
from fastrl.update import Updater, token_loss

LN2 = math.log(2)


def test_weights_by_hand():
    def weights(mode: str, cap: float, *pairs: tuple[list[float], list[float]]) -> list[float]:
        """Of completions with (policy, sampler) log-probs each."""
        logprobs = [policy for policy, _ in pairs]
        sizes = [[0] * len(row) for row in logprobs]
        rollouts = Rollouts.of([[1]] * len(pairs), sizes, sampler_logprobs=[sampler for _, sampler in pairs])
        return importance_weights(rollouts, np.concatenate(logprobs), mode, cap).tolist()

    pair, one, other = ([-1.0, -2.0], [-1.0 - LN2, -2.0 - LN2]), ([-1.0], [-1.0 - LN2]), ([-2.0], [-0.5])
    assert weights("token", 1.5, ([-1.0] * 3, [-1.0, -1.0 - LN2, -1 + LN2])) == pytest.approx([1.0, 1.5, 0.5])
    assert weights("sequence", 5.0, pair, one) == pytest.approx([4.0, 4.0, 2.0])
    assert weights("sequence", 3.0, pair) == [3.0, 3.0]
    assert weights("masked", 3.0, one, pair, other) == pytest.approx([2.0, 0.0, 0.0, 0.0])


def test_auto_asks_the_calibrated_probe():
    assert choose_importance("auto", 1e-4)[0] == "off"
    mode, reason = choose_importance("auto", 0.05)
    assert mode == "token" and "0.05" in reason
    assert choose_importance("off", 0.05)[0] == "off"
    assert choose_importance("masked", 1e-4) == ("masked", "asked for by algorithm.importance.kind")


def rollouts_of(model) -> list[Rollout]:
    """Four completions, in two groups, whose sampler log-probs are off by a known amount each."""
    generator = torch.Generator().manual_seed(2)
    batch = []
    for index, shift in enumerate([0.0, 0.3, -0.9, 0.05]):
        ids = torch.randint(11, 1400, (5,), generator=generator).tolist()
        rollout = Rollout([7, 8, 9 + index], ids, 1.0 if index % 2 else -1.0, group=index // 2)
        rollout.sampler_logprobs = [lp - shift for lp in scores_of(Policy(model), [rollout], 100)[0][0]]
        batch.append(rollout)
    return batch


def gradient_after(model, mode: str, updates: int, surrogate: str = "reinforce", scale: list[float] | None = None):
    """Weights after one batch; scale: advantages multiplied by hand instead of importance weights."""
    start = {k: v.clone() for k, v in model.state_dict().items()}
    algorithm = AlgorithmConfig(
        surrogate=surrogate, updates_per_batch=updates, importance=ImportanceConfig(cap=1.2), old_logprobs="recompute"
    )
    config = TrainConfig(algorithm=algorithm, batch=BatchConfig(2, 2, 100), sampler=SamplerConfig(max_new_tokens=8))
    policy = Policy(model, token_loss(algorithm))
    updater = Updater(policy, MasterOptimizer(policy, OptimizerConfig(lr=1e-3), 1), config)
    updater.importance_mode = mode
    batch = rollouts_of(model)
    for rollout, factor in zip(batch, scale or [1.0] * 4, strict=True):
        rollout.advantage *= factor
    updater.run(batch_of(batch))
    moved = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(start)
    return moved


@pytest.mark.parametrize(
    ("updates", "surrogate"), [(1, "reinforce"), (2, "reinforce"), (2, "ppo_clip"), (1, "ppo_clip")]
)
@pytest.mark.parametrize("mode", ["token", "sequence", "masked"])
def test_weights_multiply_the_advantage(tiny_model, mode, updates, surrogate):
    """Constant shifts per completion: every mode equals plain training with advantages scaled by hand."""
    shifts = [0.0, 0.3, -0.9, 0.05]
    scale = {
        "token": [min(math.exp(s), 1.2) for s in shifts],
        "sequence": [min(math.exp(5 * s), 1.2) for s in shifts],
        "masked": [1.0, 0.0, 0.0, 0.0],
    }[mode]
    expected = gradient_after(tiny_model, "off", updates, surrogate, scale)
    found = gradient_after(tiny_model, mode, updates, surrogate)
    plain = gradient_after(tiny_model, "off", updates, surrogate)
    if mode == "masked":  # a masked completion still counts in the mean over kept tokens
        return _assert_direction(tiny_model, found, plain)
    worst = max((found[k] - expected[k]).abs().max().item() for k in found)
    assert worst < 2e-5
    assert max((found[k] - plain[k]).abs().max().item() for k in found) > 2e-4


def _assert_direction(model, found: dict, plain: dict) -> None:
    """Masked completions must leave no trace: embeddings of tokens that only they have do not move."""
    start = model.state_dict()["model.embed_tokens.weight"]
    batch = rollouts_of(model)
    only_masked = {t for r in batch[1:] for t in r.ids} - set(batch[0].ids)
    rows = sorted(only_masked)
    assert found["model.embed_tokens.weight"][rows].equal(start[rows])
    assert not plain["model.embed_tokens.weight"][rows].equal(start[rows])
    kept = batch[0].prompt_ids[:1]
    assert not found["model.embed_tokens.weight"][kept].equal(start[kept])
