"""Factors against numbers worked out by hand, and what they do to the credits of a step."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of

from fastrl.config.algorithm import AlgorithmConfig
from fastrl.config.files import load_config
from fastrl.config.schema import TrainConfig
from fastrl.learning.factors import HighEntropy, PenaltyConfidence, PenaltyDecay
from fastrl.rollouts import Rollouts
from fastrl.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class KnownTools:
    """What a factor may ask for, told beforehand."""

    step: int = 1
    entropy: tuple[float, ...] = ()

    def entropies(self, rollouts: Rollouts) -> np.ndarray:
        return np.array(self.entropy, dtype=np.float32)


def signed(*rows: tuple[float, list[float]], mask: list[int] | None = None) -> Rollouts:
    """Rollouts of (credit of every token, sampler log-probs)."""
    made = [Rollout([1], [2] * len(lp), credit, group=i, sampler_logprobs=lp) for i, (credit, lp) in enumerate(rows)]
    batch = batch_of(made)
    return batch if mask is None else replace(batch, loss_mask_N=np.array(mask, dtype=bool))


def test_the_tokens_of_the_highest_entropies_keep_their_credit():
    batch = signed((-1, [0.0] * 3), (1, [0.0] * 2))
    tools = KnownTools(entropy=(0.1, 0.9, 0.5, 0.2, 0.7))
    assert HighEntropy(0.2)(batch, tools).tolist() == [0, 1, 0, 0, 0]
    assert HighEntropy(0.21)(batch, tools).tolist() == [0, 1, 0, 0, 1]  # 1.05 tokens are two
    assert HighEntropy(0.6)(batch, tools).tolist() == [0, 1, 1, 0, 1]
    assert HighEntropy(1.0)(batch, tools).tolist() == [1] * 5


def test_tokens_that_the_loss_may_not_use_take_no_place_among_the_highest():
    batch = signed((-1, [0.0] * 3), (-1, [0.0] * 2), mask=[1, 0, 1, 1, 1])
    tools = KnownTools(entropy=(0.1, 0.9, 0.5, 0.2, 0.5))
    assert (HighEntropy(0.25)(batch, tools) * batch.loss_mask_N).tolist() == [0, 0, 1, 0, 1]  # a tie: both
    nothing = replace(batch, loss_mask_N=np.zeros(5, bool))
    assert HighEntropy(0.2)(nothing, tools).tolist() == [1] * 5


def test_penalties_decay_by_half_lives_down_to_the_floor():
    batch = signed((-0.5, [0.0] * 2), (0.1, [0.0]), (0.0, [0.0]))
    decay = PenaltyDecay(half_life=4, floor=0.2)
    assert decay(batch, KnownTools(step=1)).tolist() == [1, 1, 1, 1]
    assert decay(batch, KnownTools(step=5)).tolist() == [0.5, 0.5, 1, 1]
    assert decay(batch, KnownTools(step=3)) == pytest.approx([0.5**0.5, 0.5**0.5, 1, 1])
    assert decay(batch, KnownTools(step=400)).tolist() == [0.2, 0.2, 1, 1]


def test_confident_errors_are_penalised_more():
    """Probabilities 1/2·1/8 have the geometric mean 1/4; a lone 0.9 is its own; a correct one keeps its credit."""
    batch = signed((-1, np.log([0.5, 0.125]).tolist()), (-1, [np.log(0.9)]), (1, [np.log(0.3)]))
    assert PenaltyConfidence()(batch, KnownTools()) == pytest.approx([0.25, 0.25, 0.9, 1])
    assert PenaltyConfidence(power=0.5)(batch, KnownTools()) == pytest.approx([0.5, 0.5, 0.9**0.5, 1])
    assert PenaltyConfidence(power=0)(batch, KnownTools()).tolist() == [1, 1, 1, 1]


def test_confidence_is_that_of_the_tokens_that_the_loss_may_use():
    batch = signed((-1, [np.log(0.5), np.nan, np.log(0.125)]), mask=[1, 0, 1])
    assert PenaltyConfidence()(batch, KnownTools())[0] == pytest.approx(0.25)


def bare_trainer(algorithm: AlgorithmConfig) -> Trainer:
    """Its arena knows who is right, and no more."""
    correctness = SimpleNamespace(are_correct=lambda rewards_R: rewards_R >= 1)
    arena = SimpleNamespace(correctness=correctness, policy=SimpleNamespace(device=torch.device("cpu")))
    return Trainer(TrainConfig(algorithm=algorithm), arena, None, None, None)


def test_a_step_multiplies_the_credits_by_every_factor_in_turn():
    algorithm = AlgorithmConfig(objective="w-reinforce", factors=("penalty-decay", "penalty-confidence"))
    algorithm = replace(algorithm, penalty_decay=PenaltyDecay(half_life=2, floor=0))
    trainer = bare_trainer(algorithm)
    batch = signed((0, np.log([0.5, 0.125]).tolist()), (0, [np.log(0.5)]))
    batch = replace(batch, credits_N=None, rewards_R=np.array([0.0, 1.0]), penalties_R=np.zeros(2))
    found = trainer.credited(3, [], batch)
    assert found.credits_N == pytest.approx([-0.125, -0.125, 0.1])  # −1 · 1/2 · 1/4; correct ones keep λ
    assert found.credits_N.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "factor"), [("a-nsr", PenaltyDecay), ("cw-nsr", PenaltyConfidence), ("high-entropy", HighEntropy)]
)
def test_the_configs_name_their_factor(name, factor):
    algorithm = load_config(TrainConfig, ROOT / "configs" / f"{name}.toml").algorithm
    assert [type(f) for f in bare_trainer(algorithm).factors] == [factor]
