"""Batches that every number of ranks must turn into the same update. As a script, one of several ranks:

torchrun --nproc-per-node 2 tests/update_ranks.py MODEL_FOLDER OUTPUT.pt
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fastrl.config.schema import AlgorithmConfig, BatchConfig, ModelConfig, OptimizerConfig, SamplerConfig, TrainConfig
from fastrl.learning.sequence_surrogates import Gspo
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.policy.pretrained import Pretrained
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
DEFAULT = AlgorithmConfig(surrogate="ppo_clip", objective="reinforce")
SCENARIOS: dict[str, tuple[AlgorithmConfig, dict[int, float], ModelConfig]] = {
    "uneven": (DEFAULT, SIGNS, ModelConfig()),
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
    "padded": (replace(DEFAULT, kl_coef=0.1), SIGNS, ModelConfig()),
}


class Recorded(MasterOptimizer):
    """Keeps the whole gradient of the first update, clipped."""

    gradient: dict[str, Tensor] | None = None

    def _update(self) -> None:
        if self.gradient is None:
            self.gradient = {name: whole(master.grad).clone() for name, master in self.masters.items()}
        super()._update()


def config_of(algorithm: AlgorithmConfig) -> TrainConfig:
    return TrainConfig(
        algorithm=algorithm,
        batch=BatchConfig(NUM_PROMPTS, GROUP, micro_batch_tokens=80),
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
    config, source = config_of(algorithm), replace(source, path=folder)
    policy = Policy(load_model(Pretrained(source), lambda text: None), token_loss(algorithm))
    reference = Policy(load_model(Pretrained(source), lambda text: None)) if algorithm.kl_coef else None
    if name == "padded":
        policy.model.set_attn_implementation("eager")
        assert not policy.is_packed
    rollouts = rollouts_of(policy.model, advantages)
    for module in (policy, reference):
        if module is not None and ranks.world_size > 1:
            shard(module, ranks)
    optimizer = Recorded(policy, config.optimizer, 10)
    metrics = Updater(policy, optimizer, config, reference=reference).run(rollouts)
    columns = score(policy, rollouts, 50)
    parts = [[rollouts.of_rollout(i, c).tolist() for c in columns] for i in range(len(rollouts))]
    scores = [tuple(part) for part in parts]
    weights = {name: whole(p).clone() for name, p in optimizer.weights.items()}
    return {"metrics": metrics, "scores": scores, "weights": weights, "gradient": optimizer.gradient}


def whole(parameter: Tensor) -> Tensor:
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()


def main(folder: str, output: str) -> None:
    with joined(torch.device("cpu"), timeout_s=60) as ranks:
        results = {name: update(folder, ranks, name) for name in SCENARIOS}
        same = ranks.gather({name: r["metrics"] for name, r in results.items()})
        assert all(metrics == same[0] for metrics in same), "ranks disagree about the metrics"
        if ranks.is_main:
            torch.save(results, Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
