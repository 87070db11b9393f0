"""Mini-batches, dropping, old log-probs and gradient accumulation, on a tiny random model."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of, drawn, scores_of
from torch.utils._pytree import tree_iter

from fastrl.config.schema import AlgorithmConfig, BatchConfig, OptimizerConfig, SamplerConfig, TrainConfig
from fastrl.learning.reductions import REDUCTIONS
from fastrl.plan.footprint import LiveBytes
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.policy.optimizer.one_pass import OnePassOptimizer
from fastrl.policy.totals import Totals
from fastrl.rollouts import Rollouts
from fastrl.sampling.embedded import EmbeddedSampler
from fastrl.sampling.protocol import SamplingSettings
from fastrl.update import Updater, token_loss

NUM_PROMPTS, GROUP = 4, 3


def rollouts_of(model, advantages: list[float]) -> list[Rollout]:
    sampler = EmbeddedSampler(model, stop_token_ids=list(range(100)), pad_token_id=0, batch_size=64)
    prompts = [list(range(200 + 7 * i, 203 + 8 * i)) for i in range(NUM_PROMPTS)]
    rollouts = drawn(sampler, prompts, SamplingSettings(GROUP, 14), list(range(NUM_PROMPTS)))
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        rollout.advantage = advantage
    return rollouts


class Recorded(MasterOptimizer):
    """Keeps the gradient of the last update."""

    def _update(self) -> None:
        self.gradient = torch.cat([m.grad.flatten() for m in self.masters.values() if m.grad is not None])
        super()._update()


def config_of(micro_batch_tokens=10_000, lr=1e-2, **algorithm) -> TrainConfig:
    return TrainConfig(
        algorithm=replace(AlgorithmConfig(), **algorithm),
        batch=BatchConfig(NUM_PROMPTS, GROUP, micro_batch_tokens),
        optimizer=OptimizerConfig(lr=lr, max_grad_norm=0.0),
        sampler=SamplerConfig(max_new_tokens=14),
    )


def run(model, config: TrainConfig, advantages: list[float], **updater):
    """(moved model, metrics, forwards by mode) after one batch."""
    model = copy.deepcopy(model)
    policy = Policy(model, token_loss(config.algorithm))
    optimizer = MasterOptimizer(policy, config.optimizer, 10)
    rollouts = rollouts_of(model, advantages)
    calls: dict[str, int] = {}
    policy.register_forward_pre_hook(
        lambda module, args, kwargs: calls.update({m: calls.get(m, 0) + 1 for m in [kwargs.get("mode", "loss")]}),
        with_kwargs=True,
    )
    metrics = Updater(policy, optimizer, config, **updater).run(batch_of(rollouts))
    return model, metrics, calls, rollouts


def logprob(model, rollouts: list[Rollout]) -> list[float]:
    return [sum(values) for values, _ in scores_of(Policy(model), rollouts, 10_000)]


SIGNS = [0.0, -1.0, -1.0, -1.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 0.0, -1.0]


def test_one_nsr_step_lowers_wrong_and_one_psr_step_raises_correct_completions(tiny_model):
    for advantage in (-1.0, 1.0):
        advantages = [advantage if a else 0.0 for a in SIGNS]
        moved, _, _, rollouts = run(tiny_model, config_of(lr=1e-4, surrogate="reinforce"), advantages)
        chosen = [r for r in rollouts if r.advantage]
        changes = [b - a for a, b in zip(logprob(tiny_model, chosen), logprob(moved, chosen), strict=True)]
        assert sum(changes) * advantage > 0


@pytest.mark.parametrize("reduction", ["token-mean-kept", "token-mean-all", "sequence-mean", "constant"])
@pytest.mark.parametrize("updates", [1, 2])
def test_the_result_does_not_depend_on_the_micro_batch_size(tiny_model, reduction, updates):
    weights = []
    for budget in (24, 40, 10_000):
        config = config_of(micro_batch_tokens=budget, lr=1e-3, reduction=reduction, updates_per_batch=updates)
        moved, metrics, _, _ = run(tiny_model, replace(config, optimizer=OptimizerConfig(lr=1e-3, eps=1e-3)), SIGNS)
        weights.append((torch.cat([p.flatten() for p in moved.parameters()]), metrics["update/num_micro_batches"]))
    assert len({num for _, num in weights}) == 3
    start = torch.cat([p.flatten() for p in tiny_model.parameters()])
    scale = (weights[-1][0] - start).abs().max()
    assert scale > 1e-5
    for values, _ in weights[:-1]:
        assert (values - weights[-1][0]).abs().max() < 1e-3 * scale


def test_the_authors_reduction_does_depend_on_the_micro_batch_size(tiny_model):
    norms = [
        run(tiny_model, config_of(micro_batch_tokens=b, reduction="micro-batch-mean"), SIGNS)[1]["grad_norm"]
        for b in (30, 10_000)
    ]
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)


def test_zero_advantage_rollouts_are_dropped_only_without_regularisers(tiny_model):
    kept = sum(a != 0 for a in SIGNS)
    assert run(tiny_model, config_of(), SIGNS)[1]["update/num_kept"] == kept
    assert run(tiny_model, config_of(entropy_coef=0.01), SIGNS)[1]["update/num_kept"] == len(SIGNS)


@pytest.mark.parametrize("reduction", ["token-mean-kept", "token-mean-all", "sequence-mean", "constant"])
def test_computing_rollouts_without_advantage_changes_no_weight(tiny_model, reduction):
    """A vanishing entropy bonus keeps them in the batch: same gradient as with them dropped."""
    dropped = run(tiny_model, config_of(reduction=reduction, lr=1e-3), SIGNS)[1]
    computed = run(tiny_model, config_of(reduction=reduction, lr=1e-3, entropy_coef=1e-30), SIGNS)[1]
    assert (dropped["update/num_kept"], computed["update/num_kept"]) == (sum(a != 0 for a in SIGNS), len(SIGNS))
    assert dropped["grad_norm"] == pytest.approx(computed["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("cut", ["before-dropping", "after-dropping"])
@pytest.mark.parametrize("reduction", sorted(REDUCTIONS))
def test_every_term_is_averaged_over_the_tokens_that_it_acts_on(tiny_model, reduction, cut):
    """One rollout of twelve has an advantage: the gradient of all terms is the sum of each term's own."""
    reference = Policy(copy.deepcopy(tiny_model))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.9)
    penalties = {"entropy_coef": 0.3, "kl_coef": 0.2}
    one = [0.0] * 11 + [-1.0]

    def gradient(advantages: list[float], **settings) -> torch.Tensor:
        config = config_of(reduction=reduction, minibatch_cut=cut, **settings)
        policy = Policy(copy.deepcopy(tiny_model), token_loss(config.algorithm))
        optimizer = Recorded(policy, config.optimizer, 10)
        given = reference if settings.get("kl_coef") else None
        Updater(policy, optimizer, config, reference=given).run(batch_of(rollouts_of(tiny_model, advantages)))
        return optimizer.gradient

    policy_term = gradient(one)
    if cut == "after-dropping":  # by advantage alone: regularisers act on what is left
        terms = [gradient([0.0] * 11 + [-1e-12], **{name: value}) for name, value in penalties.items()]
    else:
        terms = [gradient([0.0] * 12, **{name: value}) for name, value in penalties.items()]
    assert min(term.norm() for term in (policy_term, *terms)) > 1e-4
    total = gradient(one, **penalties)
    assert (total - policy_term - sum(terms)).norm() < 1e-5 * total.norm()


def test_ranks_fill_with_every_column_that_a_micro_batch_can_have(tiny_model):
    """A rank without a micro-batch runs a filler: with a KL penalty, old log-probs and importance weights, too."""
    for settings in ({}, {"kl_coef": 0.1}, {"entropy_coef": 0.1}, {"kl_coef": 0.1, "surrogate": "reinforce"}):
        config = config_of(**settings)
        policy = Policy(copy.deepcopy(tiny_model), token_loss(config.algorithm))
        updater = Updater(policy, MasterOptimizer(policy, config.optimizer, 10), config)
        for importance in ("off", "token", "sequence"):
            updater.importance_mode = importance
            totals = Totals(policy.device)
            updater._backward(Rollouts.of([], []), np.zeros(0), np.zeros(0), totals)
            assert not totals.read().any()
            assert all(not p.grad.any() for p in policy.parameters() if p.grad is not None)


@pytest.mark.parametrize("entropy_coef", [0.0, 1e-4])
def test_paper_code_is_the_authors_loss(tiny_model, entropy_coef):
    """Four wrong rollouts of twelve, mini-batch 6: one update, scaled by 4/6, mean over their tokens; ρ = 1."""
    advantages = [-1.0] * 4 + [0.0] * 8
    config = config_of(
        lr=0.0,
        updates_per_batch=2,
        minibatch_cut="after-dropping",
        reduction="micro-batch-mean",
        entropy_coef=entropy_coef,
    )
    _, metrics, _, rollouts = run(tiny_model, config, advantages)
    assert (metrics["update/num_updates"], metrics["update/num_kept"]) == (1, 4)
    loss, num_tokens = 0.0, sum(len(r.completion_ids) for r in rollouts[:4])
    for r in rollouts[:4]:
        logits = tiny_model(torch.tensor([r.ids])).logits[0, len(r.prompt_ids) - 1 : -1]
        table = torch.log_softmax(logits, -1)
        chosen = table.gather(1, torch.tensor(r.completion_ids)[:, None]).squeeze(1)
        entropy = -(table.exp() * table).sum(-1)
        loss = loss + (chosen - entropy_coef * entropy).sum() / num_tokens * 4 / 6
    gradients = torch.autograd.grad(loss, list(tiny_model.parameters()))
    norm = torch.stack([g.norm() for g in gradients]).norm().item()
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_entropy_bonus_alone_raises_entropy(tiny_model):
    config = config_of(lr=1e-4, entropy_coef=1.0, surrogate="reinforce")
    moved, _, _, rollouts = run(tiny_model, config, [0.0] * len(SIGNS))
    before, after = (
        sum(v for _, entropy in scores_of(Policy(m), rollouts, 10_000) for v in entropy) for m in (tiny_model, moved)
    )
    assert after > before


def test_second_mini_batch_sees_a_moved_policy_and_clips(tiny_model):
    _, metrics, _, _ = run(tiny_model, config_of(lr=0.05, updates_per_batch=2, surrogate="ppo_clip"), [-1.0] * 12)
    assert metrics["update/num_updates"] == 2
    assert abs(metrics["ratio/mean"] - 1) > 0.05
    assert metrics["clip/negative"] > 0.05
    _, metrics, _, _ = run(tiny_model, config_of(lr=0.05, updates_per_batch=1, surrogate="ppo_clip"), [-1.0] * 12)
    assert metrics["clip/negative"] == 0 and "ratio/mean" not in metrics


def test_both_sources_of_old_logprobs_agree_and_cost_what_they_should(tiny_model):
    results = {}
    for source, scoring in (("sampler", 0), ("recompute", 1)):
        config = config_of(lr=0.01, updates_per_batch=2, old_logprobs=source)
        _, metrics, calls, _ = run(tiny_model, config, [-1.0] * 12)
        assert calls == {"loss": 2} | ({"score": scoring} if scoring else {})
        results[source] = metrics["ratio/mean"]
    assert results["sampler"] == pytest.approx(results["recompute"], rel=1e-4)
    assert run(tiny_model, config_of(updates_per_batch=2), [-1.0] * 12, sampler_shares_weights=False)[2]["score"] == 1
    plain = config_of(updates_per_batch=2, surrogate="reinforce", old_logprobs="recompute")
    assert "score" not in run(tiny_model, plain, [-1.0] * 12)[2]


def test_mini_batches_are_as_many_as_asked_for(tiny_model):
    assert run(tiny_model, config_of(updates_per_batch=3), [-1.0] * 12)[1]["update/num_updates"] == 3


def test_packing_metrics_count_the_tokens_of_sequences_and_those_computed(tiny_model):
    """Twelve sequences of three prompts in 1000 tokens: packed a prompt is computed once, padded all are as long."""
    _, packed, _, rollouts = run(tiny_model, config_of(1000), [-1.0] * 12)
    lengths = [len(r.prompt_ids) + len(r.completion_ids) - 1 for r in rollouts]
    computed = sum(lengths) - sum((GROUP - 1) * len(rollouts[i].prompt_ids) for i in range(0, 12, GROUP))
    assert packed["packing/fill"] == pytest.approx(computed / 1000)
    assert packed["packing/efficiency"] == pytest.approx(sum(lengths) / computed) and computed < 0.9 * sum(lengths)
    tiny_model.set_attn_implementation("sdpa")
    _, padded, _, _ = run(tiny_model, config_of(1000), [-1.0] * 12)
    assert len(set(lengths)) > 1
    assert padded["packing/efficiency"] == pytest.approx(sum(lengths) / (12 * max(lengths)))
    assert padded["grad_norm"] == pytest.approx(packed["grad_norm"], rel=1e-5)


def test_an_empty_mini_batch_makes_no_update(tiny_model):
    advantages = [0.0] * 6 + [-1.0] * 6
    moved, metrics, _, _ = run(tiny_model, config_of(updates_per_batch=2), advantages)
    assert (metrics["update/num_updates"], metrics["update/num_empty"]) == (1, 1)
    moved, metrics, _, _ = run(tiny_model, config_of(), [0.0] * 12)
    assert metrics["update/num_updates"] == 0
    assert all(torch.equal(a, b) for a, b in zip(moved.parameters(), tiny_model.parameters(), strict=True))


def test_cutting_after_dropping_makes_as_many_updates_as_kept_rollouts_fill(tiny_model):
    config = config_of(updates_per_batch=2, minibatch_cut="after-dropping", reduction="micro-batch-mean")
    assert run(tiny_model, config, [-1.0] * 6 + [0.0] * 6)[1]["update/num_updates"] == 1
    assert run(tiny_model, config, [-1.0] * 7 + [0.0] * 5)[1]["update/num_updates"] == 2


def test_a_kl_penalty_pulls_back_to_the_reference(tiny_model):
    """At the reference the k3 penalty has no gradient; away from it its step reduces the mean |Δlogp|."""
    config = config_of(lr=1e-4, kl_coef=1.0, surrogate="reinforce")
    reference = Policy(copy.deepcopy(tiny_model))
    assert run(tiny_model, config, [0.0] * 12, reference=reference)[1]["grad_norm"] < 1e-5
    away = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for parameter in away.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)), alpha=0.01)
    moved, _, _, rollouts = run(away, config, [0.0] * 12, reference=reference)

    def gap(model) -> float:
        pairs = zip(*(scores_of(p, rollouts, 10_000) for p in (Policy(model), reference)), strict=True)
        return sum(torch.tensor(b).sub(torch.tensor(a)).square().sum().item() for (a, _), (b, _) in pairs)

    assert gap(moved) < gap(away)


def test_a_kl_penalty_goes_with_several_updates_a_batch(tiny_model):
    """The first mini-batch has no old log-probs, the second has: the reference scores both."""
    config = config_of(kl_coef=0.1, updates_per_batch=2)
    _, metrics, _, rollouts = run(tiny_model, config, SIGNS, reference=Policy(copy.deepcopy(tiny_model)))
    assert metrics["update/num_updates"] == 2 and metrics["kl/reference_k3"] > 0
    policy = Policy(copy.deepcopy(tiny_model), token_loss(config.algorithm))
    updater = Updater(policy, MasterOptimizer(policy, config.optimizer, 10), config, reference=policy)
    first, second = updater._prepared(updater._cut(batch_of(rollouts)))
    assert first.old_logprobs_N is None and second.old_logprobs_N is second.sampler_logprobs_N
    assert all(np.isfinite(m.ref_logprobs_N).all() for m in (first, second))


def test_a_non_finite_gradient_skips_the_update(tiny_model):
    poisoned = copy.deepcopy(tiny_model)
    config = config_of()
    policy = Policy(poisoned, token_loss(config.algorithm))
    rollouts = rollouts_of(poisoned, SIGNS)
    rollouts[1].advantage = float("inf")
    metrics = Updater(policy, MasterOptimizer(policy, config.optimizer, 10), config).run(batch_of(rollouts))
    assert (metrics["update/num_updates"], metrics["update/num_nonfinite"]) == (0, 1)
    assert all(torch.equal(a, b) for a, b in zip(poisoned.parameters(), tiny_model.parameters(), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_micro_batch_waits_for_nothing_on_a_gpu(tiny_model):
    """From columns to gradients and totals: after a warm-up no call waits for the device."""
    config = config_of(updates_per_batch=2, entropy_coef=0.01)
    policy = Policy(tiny_model.cuda().bfloat16(), token_loss(config.algorithm))
    updater = Updater(policy, MasterOptimizer(policy, config.optimizer, 10), config)
    batch, totals = batch_of(rollouts_of(tiny_model, SIGNS)), Totals(policy.device)
    batch = replace(batch, old_logprobs_N=batch.sampler_logprobs_N)
    weights_R = np.full(len(batch), 0.01)
    updater._backward(batch, weights_R, weights_R, totals)
    torch.cuda.set_sync_debug_mode("error")
    try:
        updater._backward(batch, weights_R, weights_R, totals)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert totals.read()[0] != 0


class LiveGradients(LiveBytes):
    """Counts float32 tensors of the shapes of parameters only."""

    def __init__(self, existing: list[torch.Tensor], shapes: set[torch.Size]):
        super().__init__(existing)
        self.shapes = shapes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            is_dense = isinstance(tensor, torch.Tensor) and not tensor.is_sparse
            if is_dense and tensor.dtype == torch.float32 and tensor.shape in self.shapes:
                self._add(tensor.untyped_storage(), tensor.nbytes)
        return result


@pytest.mark.parametrize("kind", [MasterOptimizer, OnePassOptimizer])
def test_an_update_holds_one_set_of_float32_gradients(tiny_model, kind):
    """bfloat16 weights, several micro-batches, clipping. Besides the set: one parameter's own, on its way into it."""
    model = copy.deepcopy(tiny_model).bfloat16()
    config = replace(config_of(micro_batch_tokens=24), optimizer=OptimizerConfig(lr=1e-3, max_grad_norm=1e-3))
    policy = Policy(model, token_loss(config.algorithm))
    optimizer = kind(policy, config.optimizer, 10)
    updater, batch = Updater(policy, optimizer, config), batch_of(rollouts_of(model, SIGNS))
    updater.run(batch)  # makes the moments
    parameters = [p for p in model.parameters() if p.ndim == 2]
    sizes = [4 * p.numel() for p in parameters]
    with LiveGradients(list(optimizer.state_tensors().values()), {p.shape for p in parameters}) as live:
        metrics = updater.run(batch)
    assert metrics["update/num_micro_batches"] > 2
    assert sum(sizes) <= live.peak <= sum(sizes) + max(sizes)


@pytest.mark.parametrize("mode", ["token", "sequence"])
def test_weights_that_rollouts_bring_multiply_those_of_importance(tiny_model, mode):
    """Of a first mini-batch, whose token weights the kernel would form, and of a later one."""
    config = config_of()
    policy = Policy(copy.deepcopy(tiny_model), token_loss(config.algorithm))
    updater = Updater(policy, MasterOptimizer(policy, config.optimizer, 10), config)
    updater.importance_mode = mode
    first, later = (batch_of([r for r in rollouts_of(tiny_model, SIGNS) if r.advantage][i : i + 2]) for i in (0, 2))
    plain = updater._prepared([first, later])
    assert (plain[0].importance_weights_N is None) == (mode == "token")
    first, later = (replace(m, sampler_logprobs_N=m.sampler_logprobs_N - 0.5) for m in (first, later))
    brought = [replace(m, importance_weights_N=np.linspace(0.1, 1, m.num_tokens)) for m in (first, later)]
    for m in updater._prepared(brought):
        gaps_N = np.full(m.num_tokens, 0.5) if mode == "token" else m.by_token(0.5 * m.completion_lengths_R)
        expected = np.linspace(0.1, 1, m.num_tokens) * np.minimum(np.exp(gaps_N), 2.0)
        assert m.importance_weights_N == pytest.approx(expected, rel=1e-3)
