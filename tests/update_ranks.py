"""Batches that every number of ranks must turn into the same update. As a script, one of several ranks:

torchrun --nproc-per-node 2 tests/update_ranks.py MODEL_FOLDER OUTPUT.pt
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed.fsdp._fully_shard._fsdp_param_group as units
from torch import Tensor
from torch.distributed.tensor import DTensor

from fastrl.config.schema import AlgorithmConfig, BatchConfig, ModelConfig, OptimizerConfig, SamplerConfig, TrainConfig
from fastrl.learners.critic import CriticLearner
from fastrl.learners.protocol import LearnerParts
from fastrl.learning.gae import Gae
from fastrl.learning.sequence_surrogates import Gspo
from fastrl.policy.loading import load_for_training, load_model
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.policy.optimizer.one_pass import OnePassOptimizer
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.recompute import blocks_of
from fastrl.policy.scoring import score
from fastrl.policy.sharding import shard
from fastrl.process.ranks import Ranks, joined
from fastrl.rollouts import Rollouts
from fastrl.sampling.embedded import EmbeddedSampler
from fastrl.sampling.protocol import SamplingSettings, sample
from fastrl.update import Updater, token_loss

NUM_PROMPTS, GROUP = 7, 2
SPARSE = {3: -1.0}  # one rollout of fourteen carries gradient: one micro-batch, every other rank fills
SIGNS = {i: (-1.0 if i % 3 else 1.0) for i in range(NUM_PROMPTS * GROUP)}
LATE = "reduced once"
DEFAULT = AlgorithmConfig(surrogate="ppo_clip", objective="reinforce")
SCENARIOS: dict[str, tuple[AlgorithmConfig, dict[int, float], ModelConfig]] = {
    "uneven": (DEFAULT, SIGNS, ModelConfig()),
    "small": (DEFAULT, SIGNS, ModelConfig()),  # micro-batches: several for each of four ranks
    "four-updates": (replace(DEFAULT, updates_per_batch=4, old_logprobs="recompute"), SIGNS, ModelConfig()),
    "gspo": (replace(DEFAULT, surrogate="gspo", gspo=Gspo(0.01, 0.01), updates_per_batch=4), SIGNS, ModelConfig()),
    "one-kept": (DEFAULT, SPARSE, ModelConfig()),
    "none-kept": (DEFAULT, {}, ModelConfig()),
    "penalties": (replace(DEFAULT, kl_coef=0.1, entropy_coef=0.01, updates_per_batch=2), SIGNS, ModelConfig()),
    "micro-batch-mean": (
        replace(DEFAULT, reduction="micro-batch-mean", kl_coef=0.1, entropy_coef=0.01, updates_per_batch=2),
        SIGNS,
        ModelConfig(),
    ),
    "recomputed": (DEFAULT, SIGNS, ModelConfig(gradient_checkpointing=True)),
    "compiled": (DEFAULT, SIGNS, ModelConfig(compile=True, gradient_checkpointing=True)),
    "padded": (replace(DEFAULT, kl_coef=0.1), SIGNS, ModelConfig()),
}
SCENARIOS |= {f"{name}, {LATE}": SCENARIOS[name] for name in ("small", "four-updates", "one-kept")}
SCENARIOS["uneven, one pass"] = SCENARIOS["uneven"]
FOR_TWO = {"compiled"}  # each process compiles for itself


def scenarios_of(num_ranks: int) -> list[str]:
    return [name for name in SCENARIOS if num_ranks <= 2 or name not in FOR_TWO]


CRITICS = {"all": range(NUM_PROMPTS * GROUP), "one": (3,), "none": ()}  # rollouts that have a reward


class Recorded(MasterOptimizer):
    """Keeps the whole gradient of the first update, clipped."""

    gradient: dict[str, Tensor] | None = None

    def _update(self) -> None:
        if self.gradient is None:
            self.gradient = {name: whole(master.grad).clone() for name, master in self.masters.items()}
        super()._update()


class RecordedOnePass(OnePassOptimizer):
    """Keeps the whole gradient of the first update, which the fused kernel clips in place."""

    gradient: dict[str, Tensor] | None = None

    def _update(self) -> None:
        super()._update()
        if self.gradient is None:
            self.gradient = {name: whole(master.grad).clone() for name, master in self.masters.items()}


class CountedReductions:
    """count: how many reduce-scatters of a unit's gradients FSDP2 started inside the block."""

    def __enter__(self) -> "CountedReductions":
        self.count, self.own = 0, units.foreach_reduce
        units.foreach_reduce = self._counted
        return self

    def _counted(self, *args, **kwargs):
        self.count += 1
        return self.own(*args, **kwargs)

    def __exit__(self, *error: object) -> None:
        units.foreach_reduce = self.own


def config_of(algorithm: AlgorithmConfig, micro_batch_tokens: int) -> TrainConfig:
    return TrainConfig(
        algorithm=algorithm,
        batch=BatchConfig(NUM_PROMPTS, GROUP, micro_batch_tokens),
        optimizer=OptimizerConfig(lr=1e-3, max_grad_norm=0.5, eps=1e-6),  # where a gradient is noise, no step of lr
        sampler=SamplerConfig(max_new_tokens=14),
    )


def rollouts_of(model, advantages: dict[int, float]) -> Rollouts:
    """Sampled by each rank alone from the whole model, before it is sharded: equal everywhere."""
    sampler = EmbeddedSampler(model, stop_token_ids=list(range(100)), pad_token_id=0, batch_size=64)
    prompts = [list(range(200 + 7 * i, 203 + 8 * i)) for i in range(NUM_PROMPTS)]
    rollouts = sample(sampler, prompts, SamplingSettings(GROUP, 14), list(range(NUM_PROMPTS)))
    credits_R = np.array([advantages.get(i, 0.0) for i in range(len(rollouts))], dtype=np.float32)
    return replace(rollouts, credits_N=rollouts.by_token(credits_R))


def update(folder: str, ranks: Ranks, name: str) -> dict:
    """Metrics, scores and weights after one batch, and the gradient of its first update."""
    algorithm, advantages, source = SCENARIOS[name]
    config, source = config_of(algorithm, 24 if "small" in name else 80), replace(source, path=folder)
    policy = Policy(load_for_training(Pretrained(source), lambda text: None), token_loss(algorithm))
    reference = Policy(load_for_training(Pretrained(source), lambda text: None)) if algorithm.kl_coef else None
    if name == "padded":
        policy.model.set_attn_implementation("eager")
        assert not policy.is_packed
    rollouts = rollouts_of(policy.model, advantages)
    for module in (policy, reference):
        if module is not None and ranks.world_size > 1:
            shard(module, ranks)
    policy.reduce_every = "update" if LATE in name else "micro-batch"
    optimizer = (RecordedOnePass if "one pass" in name else Recorded)(policy, config.optimizer, 10)
    with CountedReductions() as reductions:
        metrics = Updater(policy, optimizer, config, reference=reference).run(rollouts)
    columns = score(policy, rollouts, 50)
    parts = [[rollouts.of_rollout(i, c).tolist() for c in columns] for i in range(len(rollouts))]
    scores = [tuple(part) for part in parts]
    weights = {name: whole(p).clone() for name, p in optimizer.weights.items()}
    found = {"metrics": metrics, "scores": scores, "weights": weights, "gradient": optimizer.gradient}
    return found | {"num_reductions": reductions.count, "num_units": 1 + len(blocks_of(policy.model))}


def teach(folder: str, ranks: Ranks, rewarded: Sequence[int]) -> dict:
    """Metrics and the first gradient of a critic's three updates on a batch, its weights, credits before and after."""
    config = replace(config_of(replace(DEFAULT, updates_per_batch=3), 80), model=ModelConfig(folder))
    base = Pretrained(config.model)
    batch = rollouts_of(load_model(base, lambda text: None), {})
    rewards_R = np.array([i % 2 if i in rewarded else np.nan for i in range(len(batch))])
    batch = replace(batch, rewards_R=rewards_R, penalties_R=np.zeros(len(batch)))
    settings = Gae(gamma=0.9, lam=0.8, critic_lr=1e-3)
    learner = CriticLearner(LearnerParts(settings, config, base, ranks, lambda text: None))
    learner.optimizer = Recorded(learner.critic, replace(config.optimizer, lr=1e-3), 10)
    before, metrics, after = learner(batch, [], None), learner.learn(), learner(batch, [], None)
    weights = {name: whole(p).clone() for name, p in learner.critic.named_parameters()}
    gradient = learner.optimizer.gradient or {}
    return {"metrics": metrics, "before": before, "after": after, "weights": weights, "gradient": gradient}


def whole(parameter: Tensor) -> Tensor:
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()


def main(folder: str, output: str) -> None:
    with joined(torch.device("cpu"), timeout_s=240) as ranks:
        results = {name: update(folder, ranks, name) for name in scenarios_of(ranks.world_size)}
        results |= {f"critic {name}": teach(folder, ranks, rewarded) for name, rewarded in CRITICS.items()}
        same = ranks.gather({name: str(r["metrics"]) for name, r in results.items()})  # NaN is not NaN
        assert all(metrics == same[0] for metrics in same), "ranks disagree about the metrics"
        if ranks.is_main:
            torch.save(results, Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
