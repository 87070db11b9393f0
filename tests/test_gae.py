"""GAE and its critic against numbers worked out by hand, the formula under autograd, and values that are known."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of
from safetensors.torch import load_file
from test_training import assert_bitwise_equal, config_of, weights

from fastrl.config.checks import signal_models
from fastrl.config.schema import ModelConfig, OptimizerConfig, TrainConfig
from fastrl.config.settings import with_settings
from fastrl.learners.critic import CriticLearner, Lesson, value_losses
from fastrl.learners.protocol import LearnerParts
from fastrl.learning.gae import Gae, explained_variance, is_taught, token_rewards
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.scoring import values
from fastrl.process.ranks import ALONE
from fastrl.records.jsonl import read_jsonl
from fastrl.rollouts import Rollouts
from fastrl.run.training import train
from fastrl.sample_and_judge import Arena
from fastrl.sampling.protocol import SamplingSettings
from fastrl.tasks.correctness import Correctness
from fastrl.trainer import StepTools

MODEL = Path(__file__).resolve().parent.parent / "models" / "countdown"


def judged(rows: list[Rollout], rewards: list[float]) -> Rollouts:
    return replace(batch_of(rows), rewards_R=np.array(rewards), penalties_R=np.zeros(len(rows)))


def test_advantages_by_hand():
    """γ = λ = ½: δ = (½·2 − 1, ½·4 − 2, 8 − 4) = (0, 0, 4); each earlier A is δ + ¼·A. The second row is empty."""
    rewards, lengths = np.array([0.0, 0.0, 8.0, 1.0]), np.array([3, 0, 1])
    found = Gae(gamma=0.5, lam=0.5).advantages(rewards, np.array([1.0, 2.0, 4.0, 3.0]), lengths)
    assert found.tolist() == [0.25, 1.0, 4.0, -2.0]
    found = Gae(gamma=0.5, lam=1.0).advantages(rewards, np.array([1.0, 2.0, 4.0, 3.0]), lengths)
    assert found.tolist() == [1.0, 2.0, 4.0, -2.0]  # ½ⁿ·8 − V


def test_without_discount_it_is_the_reward_less_the_value():
    rng, lengths = np.random.default_rng(0), np.array([5, 1, 40])
    values_N = rng.normal(size=46)
    rewards_N = np.zeros(46)
    rewards_N[[4, 5, 45]] = 1.0, 0.0, 0.25
    expected = np.repeat([1.0, 0.0, 0.25], lengths) - values_N
    assert Gae().advantages(rewards_N, values_N, lengths) == pytest.approx(expected, abs=1e-12)
    temporal = Gae(lam=0.0).advantages(rewards_N, values_N, lengths)
    assert temporal[[0, 4]] == pytest.approx([values_N[1] - values_N[0], 1 - values_N[4]])


def test_whitening_by_hand():
    """Mean 3, unbiased variance (4 + 1 + 0 + 9) / 3."""
    advantages = np.array([1.0, 2.0, 3.0, 6.0])
    assert Gae().credits(advantages) == pytest.approx(np.array([-2, -1, 0, 3]) / (14 / 3) ** 0.5)
    assert Gae(whiten=False).credits(advantages) is advantages
    for equal in (np.full(7, 0.1), np.array([0.3]), np.zeros(0)):
        assert Gae().credits(equal).tolist() == [0.0] * len(equal)


def test_what_is_taught_and_where_its_rewards_lie():
    """A masked token in the middle is stepped over; a masked end moves the reward; no reward, nothing taught."""
    rows = [
        Rollout([4], [5, 6, 7], loss_mask=[1, 0, 1]),
        Rollout([4], [5, 6], loss_mask=[1, 0]),
        Rollout([4], [5, 6]),
        Rollout([4], [5], finish_reason="length", loss_mask=[0]),
    ]
    batch = judged(rows, [1.0, 0.5, np.nan, 1.0])
    taught_N = is_taught(batch)
    assert taught_N.tolist() == [True, False, True, True, False, False, False, False]
    assert token_rewards(batch, taught_N).tolist() == [0.0, 1.0, 0.5]
    assert token_rewards(batch, taught_N, np.array([0.1, 0.2, 0.3])) == pytest.approx([-0.1, 0.8, 0.2])


def test_explained_variance_by_hand():
    returns = np.array([0.0, 1.0, 1.0, 0.0])
    assert explained_variance(returns, returns) == 1 and explained_variance(np.full(4, 0.3), returns) == 0
    assert explained_variance(np.array([0.5, 1.0, 1.0, 0.0]), returns) == pytest.approx(1 - (0.25 - 1 / 16) / 4 * 4 / 1)
    assert np.isnan(explained_variance(np.array([0.1, 0.2]), np.ones(2)))


def test_a_value_is_held_where_moving_on_would_only_help_the_loss():
    """Old values 0, clip ½. Moved to 1 toward 2: held at ½, and no gradient. Away from it, or near: as it is."""
    now = torch.tensor([1.0, -1.0, 0.25], requires_grad=True)
    losses, is_held = value_losses(now, torch.zeros(3), torch.full((3,), 2.0), 0.5)
    assert losses.tolist() == [0.5 * 1.5**2, 0.5 * 3.0**2, 0.5 * 1.75**2] and is_held.tolist() == [True, False, False]
    assert torch.autograd.grad(losses.sum(), now)[0].tolist() == [0.0, -3.0, -1.75]


def learner_of(folder, dtype: str = "float32", **settings) -> CriticLearner:
    """lr 3e-3, two updates a batch, packed micro-batches of 24 tokens; the head is not zero."""
    optimizer = OptimizerConfig(lr=1.0, max_grad_norm=0.0)
    config = replace(config_of("unused", folder), optimizer=optimizer, model=ModelConfig(str(folder), dtype))
    config = replace(config, batch=replace(config.batch, micro_batch_tokens=24))
    parts = LearnerParts(
        Gae(**{"critic_lr": 3e-3} | settings), config, Pretrained(config.model), ALONE, lambda text: None
    )
    learner = CriticLearner(parts)
    with torch.no_grad():
        learner.critic.value_head.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
        learner.critic.value_head.bias.fill_(0.2)
    return learner


ROWS = [
    Rollout([4, 5, 6], [7, 8, 9, 1], group=0),
    Rollout([4, 5, 6], [7, 3], group=0, loss_mask=[1, 0]),
    Rollout([9], [5, 1], group=1),
    Rollout([9], [8, 8, 8, 8, 8], group=1),
    Rollout([5, 5], [2, 1], group=2),
]


def own_values(learner: CriticLearner, row: Rollout) -> torch.Tensor:
    """Of one completion, from the bare backbone: the state before each token."""
    states = learner.critic.model(input_ids=torch.tensor([row.ids]), use_cache=False).last_hidden_state[0]
    return learner.critic.value_head(states[len(row.prompt_ids) - 1 : -1])[:, 0]


def test_a_value_is_that_of_the_state_before_its_token(countdown_folder):
    learner = learner_of(countdown_folder)
    assert learner.critic.is_packed
    found = values(learner.critic, batch_of(ROWS), 24)
    learner.critic.model.set_attn_implementation("eager")
    expected = np.concatenate([own_values(learner, row).detach() for row in ROWS])
    assert found == pytest.approx(expected, abs=1e-5) and np.ptp(expected) > 0.1
    assert values(learner.critic, batch_of(ROWS), 24) == pytest.approx(expected, abs=1e-5)  # padded


class Kept(torch.optim.SGD):
    """Notes the gradients of its step, and makes none."""

    def step(self, closure=None):
        self.noted = [p.grad.clone() for p in self.param_groups[0]["params"]]


def test_the_gradient_is_that_of_the_formula(countdown_folder):
    """Mean over taught tokens of ½·max((V − G)², (clip(V, V_old ± c) − G)²), one sequence at a time, unpacked."""
    learner = learner_of(countdown_folder, value_clip=0.05)
    batch, rng = batch_of(ROWS), np.random.default_rng(1)
    old_N = values(learner.critic, batch, 24) + rng.normal(0, 0.2, batch.num_tokens).astype(np.float32)
    returns_N = rng.uniform(-1, 1, batch.num_tokens).astype(np.float32)
    taught_N = batch.loss_mask_N
    lesson_batch = replace(batch, rewards_R=np.ones(len(batch)), penalties_R=np.zeros(len(batch)))
    learner.lesson = Lesson(lesson_batch, taught_N, old_N, returns_N)
    learner.optimizer.adamw = Kept(learner.optimizer.masters.values(), lr=1.0)
    learner.num_updates = 1
    metrics = learner.learn()
    learner.critic.model.set_attn_implementation("eager")
    now = torch.cat([own_values(learner, row) for row in ROWS])
    old, returns, taught = (torch.from_numpy(x) for x in (old_N, returns_N, taught_N))
    held = torch.max(torch.min(now, old + 0.05), old - 0.05)
    loss = 0.5 * torch.max((now - returns) ** 2, (held - returns) ** 2)[taught].mean()
    weights = list(learner.critic.parameters())
    assert metrics["critic/loss"] == pytest.approx(loss.item(), rel=1e-5) and 0 < metrics["critic/clipped"] < 1
    for ours, reference in zip(learner.optimizer.adamw.noted, torch.autograd.grad(loss, weights), strict=True):
        assert (ours - reference).norm() <= 1e-4 * reference.norm() + 1e-7


def test_credits_are_the_advantages_of_taught_tokens(countdown_folder):
    """Values are the critic's; a completion without a reward gets nothing and is no part of the mean."""
    learner = learner_of(countdown_folder, whiten=False)
    batch = judged(ROWS, [1.0, 1.0, np.nan, 0.0, 1.0])
    before = [own_values(learner, row).tolist() for row in ROWS]
    credits_N = learner(batch, [], None)
    expected = [[r - v for v in own] for r, own in zip([1, 1, 0, 0, 1], before, strict=True)]
    expected[1][1], expected[2] = 0.0, [0.0, 0.0]  # masked; no reward
    assert credits_N == pytest.approx(np.concatenate(expected), abs=1e-5)
    learner.settings = Gae()
    whitened = learner(batch, [], None)
    assert whitened[5:8].tolist() == [0, 0, 0]
    taught = np.delete(whitened, [5, 6, 7])
    assert taught.mean() == pytest.approx(0, abs=1e-9) and taught.var(ddof=1) == pytest.approx(1, abs=1e-6)
    assert learner.learn()["critic/num_updates"] == 2


def test_a_batch_that_teaches_nothing_moves_nothing(countdown_folder):
    learner = learner_of(countdown_folder)
    before = copy.deepcopy(learner.critic.state_dict())
    assert not learner(judged(ROWS, [np.nan] * 5), [], None).any()
    metrics = learner.learn()
    assert metrics["critic/num_updates"] == 0 and metrics["critic/loss"] == 0
    assert_bitwise_equal(before, learner.critic.state_dict())


def test_the_penalty_is_taken_from_each_token(countdown_folder):
    """With γ = λ = 1, values of 0: R − kl_coef·Σ_{s ≥ t} (log π(y_s) − log π_ref(y_s))."""
    learner = learner_of(countdown_folder, whiten=False, kl_coef=0.5)
    torch.nn.init.zeros_(learner.critic.value_head.weight), torch.nn.init.zeros_(learner.critic.value_head.bias)
    model = load_model(Pretrained(ModelConfig(str(countdown_folder))), lambda text: None)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    arena = Arena(None, None, None, None, Policy(model), Correctness(), {"reference": Policy(reference)})
    row = ROWS[0]
    credits_N = learner(judged([row], [1.0]), [], StepTools(arena, SamplingSettings(1, 8), 512, None, 0, 1))
    with torch.no_grad():
        tables = [m(torch.tensor([row.ids])).logits[0, 2:-1].log_softmax(-1) for m in (model, reference)]
    own, ref = (table.gather(1, torch.tensor(row.completion_ids)[:, None])[:, 0].double() for table in tables)
    expected = 1 - 0.5 * (own - ref).flip(0).cumsum(0).flip(0)
    assert credits_N == pytest.approx(expected.numpy(), abs=1e-5) and abs(expected[0] - 1) > 0.01


def test_the_reference_is_what_the_run_begins_with(countdown_folder):
    config = with_settings(config_of("unused", countdown_folder), {"algorithm.signals": ("gae",)})
    assert signal_models(config) == {}
    assert signal_models(with_settings(config, {"algorithm.gae.kl_coef": 1e-3})) == {"reference": str(countdown_folder)}


def test_a_critic_learns_what_can_be_known(countdown_folder):
    """Of completions behind one prompt three in four are right, behind another none: values of ¾ and 0."""
    learner = learner_of(countdown_folder, critic_lr=1e-2)
    learner.token_budget = 100
    rows = [Rollout([4, 5, 6], [7, 8, 1], group=0) for _ in range(4)] + [Rollout([9, 9], [7, 1], group=1)] * 2
    batch, losses = judged(rows, [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]), []
    for step in range(25):
        learner.start_step(step + 1)
        learner(batch, [], None)
        losses.append(learner.learn())
    assert losses[-1]["critic/loss"] < 0.6 * losses[0]["critic/loss"]
    found = values(learner.critic, batch, 24)
    assert found[:12] == pytest.approx(0.75, abs=0.05) and found[12:] == pytest.approx(0, abs=0.05)
    left = (12 / 16 * 3 / 16) / (9 / 16 * 7 / 16)  # over the 16 tokens
    assert losses[-1]["critic/explained_variance"] == pytest.approx(1 - left, abs=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_critics_state_comes_back_bitwise(countdown_folder, dtype):
    first, second = learner_of(countdown_folder, dtype), learner_of(countdown_folder, dtype)
    batch = judged(ROWS, [1.0, 1.0, 0.0, 0.0, 1.0])
    first(batch, [], None)
    first.learn()
    stored = {name: tensor.clone() for name, tensor in first.state_tensors().items()}
    assert ("weight.value_head.weight" in stored) and ("master.model.norm.weight" in stored) == (dtype == "bfloat16")
    second.load_state_tensors(stored)
    for learner in (first, second):
        learner(batch, [], None)
        learner.learn()
    assert_bitwise_equal(first.critic.state_dict(), second.critic.state_dict())


def gae_config(folder) -> TrainConfig:
    """A model that earns rewards now and then: without any, values of 0 are right and nothing moves."""
    config = with_settings(config_of(folder, MODEL), {"algorithm.objective": "none", "algorithm.signals": ("gae",)})
    config = with_settings(config, {"evaluation.every": 0, "evaluation.at_end": False})
    return with_settings(config, {"algorithm.gae.kl_coef": 0.1, "algorithm.gae.critic_lr": 1e-3})


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    config = gae_config(tmp_path / "run")
    train(config)
    rows, whole = read_jsonl(tmp_path / "run" / "metrics.jsonl"), weights(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-000004").rename(tmp_path / "away")
    train(config, resume=True)
    assert_bitwise_equal(whole, weights(tmp_path / "run"))
    again = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    told = [[{k: v for k, v in row.items() if k.startswith("critic/")} for row in found] for found in (rows, again)]
    assert told[0] == told[1] and [row["critic/num_updates"] for row in told[0]] == [2] * 4
    before = weights(tmp_path / "run", 2)
    moved = {name for name, tensor in before.items() if not tensor.equal(whole[name])}
    name = "model.layers.0.mlp.up_proj.weight"
    assert {f"gae/weight.{name}", f"gae/exp_avg.{name}", "gae/weight.value_head.weight", name} < moved


def test_a_critic_beside_adapters_is_whole(tmp_path):
    pytest.importorskip("peft")
    config = with_settings(gae_config(tmp_path / "run"), {"model.lora_rank": 2, "run.num_steps": 1})
    train(config)
    (trainer,) = (tmp_path / "run" / "checkpoints" / "step-000001" / "trainer").iterdir()
    critics, policys = (
        {name for name in load_file(trainer) if name.startswith("gae/") == is_critics} for is_critics in (True, False)
    )
    assert "gae/exp_avg.model.embed_tokens.weight" in critics and not any("lora" in name for name in critics)
    assert any("lora_A" in name for name in policys) and not any("embed_tokens" in name for name in policys)
