"""The ledger of a run: RUN/ledger.jsonl, one line per measurement, against the policy of step 0.

RUN/ledger/ holds what all lines refer to: the probe set, the initial log-probs of its completions, and the initial
distributions at the positions that are followed token by token. A resumed run reads it back; nothing is drawn twice.

A line: `mass` and `base_mass` (means over prompts), `moved`, `prompts` (masses by prompt), `logprob` (changes by kind),
`tokens` (`positive`: correct completions, `negative`: penalised ones), `gradient` if asked for, `update` (the step's
own batch by sign; empty for step 0, and for a line that a resumed run writes in place of an interrupted one). Both
split what moved by the rank of the token (`by_rank`, see `ledger.ranks`): `tokens` against the initial policy, on
prompts that are not trained on; `update` by one step, at the very tokens that it penalised or reinforced.
"""

from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from fastrl.config.schema import TrainConfig
from fastrl.ledger import accounts, movement
from fastrl.ledger.gradients import sign_gradients
from fastrl.ledger.probe_set import KINDS, Probe, ProbeSet, build_probe_set, load_probe_set, save_probe_set
from fastrl.ledger.ranks import by_rank, kept_distributions, rank_statistics
from fastrl.ledger.updates import TokensBefore, tokens_before, update_changes
from fastrl.policy.distributions import Position, token_distributions
from fastrl.policy.model import Policy
from fastrl.policy.scoring import score
from fastrl.process.seeds import seed_of
from fastrl.records.dropped import drop_lines_after
from fastrl.records.durable import replacing
from fastrl.records.jsonl import read_jsonl
from fastrl.rollouts import Rollouts
from fastrl.sample_and_judge import Arena

SIGNS = ("positive", "negative")
NUM_NAMED = 8  # positions of each sign whose gainers are named


def open_ledger(config: TrainConfig, folder: Path, completed_step: int, arena: Arena) -> "Ledger | None":
    """The run's ledger, made before the first update or read back; None where the config asks for none.

    ValueError for a run past its first update without one: the initial policy is gone.
    """
    if not config.ledger.every:
        return None
    path = folder / "ledger"
    if (path / "probe_set.json").exists():
        probe_set, base = load_probe_set(path / "probe_set.json"), load_file(path / "base.safetensors")
    elif completed_step:
        raise ValueError(f"{path} is missing: a ledger is begun before the first update, not at step {completed_step}")
    else:
        probe_set = build_probe_set(config, arena)
        base = _initial(config, arena.policy, probe_set)
        with replacing(path / "base.safetensors") as draft:
            save_file(base, draft)
        save_probe_set(probe_set, path / "probe_set.json")
    drop_lines_after(folder / "ledger.jsonl", completed_step)
    return Ledger(config, folder / "ledger.jsonl", probe_set, base, arena.policy, arena.tokenizer)


class Ledger:
    """Measures a policy against the initial one. Weights, gradients and random state of the run stay as they are."""

    def __init__(
        self,
        config: TrainConfig,
        path: Path,
        probe_set: ProbeSet,
        base: dict[str, torch.Tensor],
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
    ):
        self.config, self.path, self.probe_set, self.base = config.ledger, path, probe_set, base
        self.policy, self.tokenizer = policy, tokenizer
        self.token_budget, self.seed = config.batch.micro_batch_tokens, config.run.seed
        self.before: TokensBefore = {}
        rows = read_jsonl(path) if path.stat().st_size else []
        self.last_step = rows[-1]["step"] if rows else -1

    def before_update(self, step: int, scored: Rollouts) -> None:
        """Keep the distributions at tokens that the update of this step will move, if its line is due."""
        if self._is_due(step):
            seed = seed_of(self.seed, "ledger", "update", step)
            self.before = tokens_before(self.policy, scored, self.config.num_positions, seed, self.token_budget)

    def _is_due(self, step: int) -> bool:
        return step > self.last_step and step % self.config.every == 0

    def line(self, step: int, scored: Rollouts | None = None) -> dict | None:
        """The line of this step for `path`, if one is due and not there yet; step 0 is always due.

        scored: the rollouts of the step that were scored before its update, if there was one.
        """
        if not self._is_due(step):
            return None
        update = update_changes(self.policy, scored, self.before, self.token_budget) if scored else {}
        row = self.measure(step) | {"update": update}
        self.last_step = step
        return row

    def measure(self, step: int) -> dict:
        """The line of the policy as it is now."""
        base_S = self.base["logprobs"].numpy()
        now_S = _sequence_logprobs(self.policy, self.probe_set, self.token_budget)
        base, now = (accounts.masses(self.probe_set, logprobs_S) for logprobs_S in (base_S, now_S))
        row = {
            "step": step,
            "mass": {kind: float(values.mean()) for kind, values in now.items()},
            "base_mass": {kind: float(values.mean()) for kind, values in base.items()},
            "moved": accounts.moved(base, now),
            "prompts": {kind: now[kind] for kind in KINDS},
            "logprob": accounts.logprob_changes(self.probe_set, base_S, now_S),
            "tokens": {sign: self._tokens(sign) for sign in SIGNS},
        }
        if self.config.gradients:
            row["gradient"] = sign_gradients(self.policy, self.probe_set, now_S, self.token_budget)
        return row

    def _tokens(self, sign: str) -> dict:
        """Means over the positions of one sign, gradient magnitudes by confidence, gainers where most was lost."""
        positions = [tuple(p) for p in self.base[f"{sign}.positions"].tolist()]
        gradients, movements, ranks, named = [], [], [], []
        rollouts = self.probe_set.rollouts
        for indices, now_nV in token_distributions(self.policy, rollouts, positions, self.token_budget):
            base_nV = self.base[f"{sign}.distributions"][indices].to(now_nV.device)
            targets = [self.probe_set.probes[positions[i][0]].ids[positions[i][1]] for i in indices]
            targets_n = torch.tensor(targets, device=now_nV.device)
            gradients.append(movement.gradient_statistics(now_nV, targets_n))
            movements.append(movement.movement_statistics(base_nV, now_nV, targets_n))
            ranks.append(rank_statistics(base_nV, now_nV, targets_n))
            gainers = movement.top_gainers(base_nV, now_nV, targets_n, self.config.top_k)
            losses = movements[-1]["lost"].tolist()
            named += [(loss, positions[i], g) for loss, i, g in zip(losses, indices, gainers, strict=True)]
            named = sorted(named, key=lambda item: (-abs(item[0]), item[1]))[:NUM_NAMED]
        return {
            "num": len(positions),
            "movement": movement.means(movements),
            "gradient": movement.means(gradients),
            "by_confidence": movement.by_confidence(gradients),
            "by_rank": by_rank(ranks),
            "largest": [self._named(*item) for item in named],
        }

    def _named(self, lost: float, position: Position, gainers: list[dict]) -> dict:
        probe = self.probe_set.probes[position[0]]
        return {
            "problem": self.probe_set.problem_ids[probe.prompt],
            "completion": probe.text,
            "position": position[1],
            "token": self._text(probe.ids[position[1]]),
            "lost": lost,
            "gainers": [g | {"token": self._text(g["token"])} for g in gainers],
        }

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special_tokens=False)


def _initial(config: TrainConfig, policy: Policy, probe_set: ProbeSet) -> dict[str, torch.Tensor]:
    """What every line is compared with: sequence log-probs, and per sign the positions and their distributions."""
    budget = config.batch.micro_batch_tokens
    tensors = {"logprobs": torch.from_numpy(_sequence_logprobs(policy, probe_set, budget))}
    for sign in SIGNS:
        positions = _choose_positions(probe_set, sign, config.ledger.num_positions, config.run.seed)
        tensors[f"{sign}.positions"] = torch.tensor(positions, dtype=torch.int64).view(-1, 2)
        tensors[f"{sign}.distributions"] = kept_distributions(policy, probe_set.rollouts, positions, budget)
    return tensors


def _choose_positions(probe_set: ProbeSet, sign: str, count: int, seed: int) -> list[Position]:
    """A seeded sample of the tokens of drawn completions: of the correct ones, or of the penalised ones."""

    def is_followed(probe: Probe) -> bool:
        return probe.kind == ("correct" if sign == "positive" else "penalised") and probe.num_samples > 0

    def own(probe: Probe) -> list[int]:
        return [t for t, _ in enumerate(probe.ids) if not probe.turns or probe.turns[t] > 0]

    everything = [(i, t) for i, p in enumerate(probe_set.probes) if is_followed(p) for t in own(p)]
    chosen = Random(seed_of(seed, "ledger", sign)).sample(everything, min(count, len(everything)))
    return sorted(chosen)


def _sequence_logprobs(policy: Policy, probe_set: ProbeSet, token_budget: int) -> np.ndarray:
    """(S,) float64 log-probs of the completions, in nats."""
    logprobs_N, _ = score(policy, probe_set.rollouts, token_budget)
    return probe_set.rollouts.sum_by_rollout(logprobs_N)
