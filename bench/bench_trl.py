"""End to end beside TRL's GRPOTrainer on CPU: GRPO on the countdown model, as it is and with 151 936 tokens.

    python bench/bench_trl.py            both vocabularies, below 8 minutes; writes bench/results/trl.json and trl.md
    python bench/bench_trl.py --dry      tiny counts; writes nothing

Both sides hold their own copy of one model, set equal before every round. A round: ours samples, verifies and scores;
TRL samples the same prompts and verifies its completions; then both train on *our* completions (TRL takes them through
its `rollout_func`). Who goes first alternates. Before anything is timed, loss and gradient of one update on the same
completions are compared: advantages without division by the standard deviation, mean over all tokens of the update.

TRL runs at the fastest of the settings in `SETTINGS`, found in the same run and named in the result. Weights, gradients
and AdamW are float32 on both sides, fused. Memory: peak resident set above that at the start of the phase, in a round
of its own, with freed memory given back to the system before each phase.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import trl_peer
from machine import machine
from peak_memory import given_back, resident_bytes
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging
from trl_peer import Peer, Round, Settings

from fastrl.config.algorithm import ImportanceConfig
from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplerConfig,
    TaskConfig,
    TrainConfig,
)
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.rollouts import Rollouts
from fastrl.run.preflight import check_everything
from fastrl.run.training import Run
from fastrl.tasks import load_task

ROOT = Path(__file__).resolve().parent.parent
COUNTDOWN = ROOT / "models" / "countdown"
BIG_VOCABULARY = 151_936
LR = 1e-5


@dataclass(frozen=True)
class Case:
    """One vocabulary: sizes of a step, timed rounds, and bars as TRL's median over ours."""

    name: str
    prompts: int
    rounds: int
    train_bar: float
    iteration_bar: float
    memory_bar: float | None = None
    scan_rounds: int = 3
    updates: int = 4
    rollouts: int = 8
    max_new_tokens: int = 16


CASES = (
    Case("characters", prompts=64, rounds=12, train_bar=2.0, iteration_bar=1.3),
    Case("151936", prompts=16, rounds=4, train_bar=4.0, iteration_bar=1.5, memory_bar=1 / 3, scan_rounds=2),
)
SETTINGS = [  # parts: micro-batches of one update
    Settings(parts=1, bf16=False),
    Settings(parts=2, bf16=False),
    Settings(parts=4, bf16=False),
    Settings(parts=1, bf16=True),
]


def make_big_model(folder: Path) -> None:
    """The countdown model with as many tokens as Qwen has, which it all but never draws: their logits are about −60.

    So completions, rewards and gradients stay those of a model that knows its task, and every row of the head is
    computed. The direction d of the new rows has h·d ≈ 1 for the hidden states h of the task's demonstrations.
    """
    tokenizer, model = small_tokenizer(), AutoModelForCausalLM.from_pretrained(COUNTDOWN)
    pairs = load_task(TaskConfig(), splits=()).demonstrations(random.Random(0), 512)
    inputs = tokenizer(["".join(pair) for pair in pairs], padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        hidden_NH = model.base_model(**inputs).last_hidden_state[inputs.attention_mask.bool()]
        direction_H = torch.linalg.lstsq(hidden_NH, torch.ones(len(hidden_NH), 1)).solution.squeeze(1)
        known_VH = model.get_input_embeddings().weight.clone()
        model.resize_token_embeddings(BIG_VOCABULARY, mean_resizing=False)
        generator = torch.Generator().manual_seed(0)
        noise = 0.02 * torch.randn(BIG_VOCABULARY, len(direction_H), generator=generator)
        model.get_input_embeddings().weight.copy_(noise - 60 * direction_H)
        model.get_input_embeddings().weight[: len(known_VH)] = known_VH
    model.save_pretrained(folder)
    big_tokenizer(tokenizer, BIG_VOCABULARY).save_pretrained(folder)


def small_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(COUNTDOWN)


def big_tokenizer(small: PreTrainedTokenizerBase, vocab_size: int) -> PreTrainedTokenizerFast:
    """The same tokens with the same ids, then <21>, <22>, …"""
    tokens = sorted(small.get_vocab(), key=small.get_vocab().get)
    tokens += [f"<{i}>" for i in range(len(tokens), vocab_size)]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


def make_config(case: Case, folder: Path) -> TrainConfig:
    """Ours: the settings of configs/countdown.toml with GRPO."""
    model = COUNTDOWN
    if case.name != "characters":
        model = folder / "model"
        make_big_model(model)
    return TrainConfig(
        model=ModelConfig(path=str(model), dtype="float32", device="cpu"),
        task=TaskConfig(num_train=2000, num_validation=1, num_test=1),
        sampler=SamplerConfig(kind="embedded", max_new_tokens=case.max_new_tokens, batch_size=1024),
        algorithm=AlgorithmConfig(
            objective="dr-grpo",
            reduction="token-mean-all",
            updates_per_batch=case.updates,
            importance=ImportanceConfig("off"),
        ),
        batch=BatchConfig(prompts_per_step=case.prompts, rollouts_per_prompt=case.rollouts),
        optimizer=OptimizerConfig(lr=LR, max_grad_norm=1.0),
        evaluation=EvaluationConfig(at_end=False),
        run=RunConfig(folder=str(folder / "run"), num_steps=1000, sinks=()),
    )


class Ours:
    """Our side of the rounds: an open run whose steps are taken one phase at a time."""

    def __init__(self, run: Run):
        self.run, self.trainer, self.step = run, run.parts.trainer, 0

    def collect(self) -> Rollouts:
        self.step += 1
        self.batch = self.trainer.collect(self.step)
        return self.batch.rollouts

    def learn(self) -> None:
        self.run.parts.optimizer.start_step(self.step)
        self.trainer.learn(self.batch)
        self.trainer.publish(self.batch)


class GradientRecorder(MasterOptimizer):
    """Keeps the gradient before clipping and moves nothing."""

    def step(self) -> tuple[float, bool]:
        self.gradients = {name: w.grad.clone() for name, w in self.weights.items()}
        self.zero_grad()
        return 1.0, True


def check_parity(case: Case, config: TrainConfig, folder: Path) -> dict[str, float]:
    """Loss and gradient of one update on the same completions, ours and TRL's; AssertionError beyond 1e-5.

    gradient_difference: relative, of all parameters as one vector; worst: of a single tensor.
    """
    single = replace(
        config,
        algorithm=replace(config.algorithm, updates_per_batch=1),
        run=replace(config.run, folder=str(folder / "parity")),
    )
    with Run(check_everything(single, is_resumed=False), resume=False) as run:
        ours = Ours(run)
        rollouts = ours.collect()
        recorder = GradientRecorder(run.parts.policy, config.optimizer, 1)
        run.parts.updater.optimizer = recorder
        metrics = run.parts.updater.run(rollouts)
        peer = Peer(replace(case, updates=1), single, Settings(parts=2, bf16=False), folder)
        theirs = peer.gradient_of(rollouts)
    assert metrics["update/kept_share"] > 0.2, "too few rollouts carry gradient for a comparison to mean anything"
    pairs = [(recorder.gradients[f"model.{name}"], theirs.gradients[name]) for name in theirs.gradients]
    worst = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
    ours_all, theirs_all = (torch.cat([pair[side].flatten() for pair in pairs]).double() for side in (0, 1))
    difference = ((ours_all - theirs_all).norm() / theirs_all.norm()).item()
    result = {"loss": metrics["loss"], "loss_trl": theirs.loss, "gradient_difference": difference, "worst": worst}
    assert abs(metrics["loss"] - theirs.loss) < 1e-5 and difference < 1e-5, result
    return result


def phase(run, has_memory: bool) -> tuple[object, float, int]:
    """(what it returns, seconds, extra peak bytes; 0 where memory is not asked for)."""
    before = given_back() if has_memory else 0
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    return result, seconds, resident_bytes("VmHWM") - before if has_memory else 0


class Duel(trl_peer.Host):
    """What TRL's loop calls: our phases run between its own. `rounds` fills up, the first (warm-up) included."""

    def __init__(self, ours: Ours, num_warm: int = 1):
        self.ours, self.rounds, self.num_warm = ours, [], num_warm

    def before_training(self, peer: Peer) -> Rollouts:
        self.current = Round(has_memory=len(self.rounds) == self.num_warm)
        peer.copy_weights(self.ours.run.parts.policy.model)
        prompts = peer.next_prompts(self.ours.trainer)
        sides = [lambda: self._collect_ours(), lambda: peer.generate(prompts, self.current, phase)]
        for side in sides[:: 1 if len(self.rounds) % 2 == 0 else -1]:
            side()
        if len(self.rounds) % 2 == 0:
            self._learn_ours()
        return self.rollouts

    def after_training(self) -> None:
        if len(self.rounds) % 2:
            self._learn_ours()
        self.rounds.append(self.current)

    def _collect_ours(self) -> None:
        self.rollouts, _, peak = phase(self.ours.collect, self.current.has_memory)
        times = self.ours.trainer.watch.times
        self.current.add("ours", "generate", times["freshness"] + times["generate"], peak)
        self.current.add("ours", "verify", times["verify"])
        self.current.add("ours", "score", times["score"])

    def _learn_ours(self) -> None:
        _, seconds, peak = phase(self.ours.learn, self.current.has_memory)
        self.current.add("ours", "train", seconds, peak)


def find_settings(case: Case, config: TrainConfig, rollouts: Rollouts, folder: Path) -> tuple[Settings, dict]:
    """The fastest of TRL's settings on these completions, and each one's median after a round of warm-up."""
    found = {}
    for settings in SETTINGS:
        peer = Peer(case, config, settings, folder)
        found[settings] = statistics.median(peer.train_seconds(rollouts, case.scan_rounds)[1:])
        print(f"TRL {settings.name}: training {found[settings]:.2f} s", flush=True)
    return min(found, key=found.get), {s.name: round(t, 3) for s, t in found.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, p20 and p80."""
    p20, *_, p80 = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 2
    return {name: round(v, 4) for name, v in (("median", statistics.median(values)), ("p20", p20), ("p80", p80))}


def summarise(rounds: list[Round]) -> dict:
    """Seconds by side and phase, extra bytes of the memory round, and TRL over ours pair by pair."""
    timed, memory = [r for r in rounds[1:] if not r.has_memory], next(r for r in rounds if r.has_memory)
    names = {side: [n for s, n in timed[0].seconds if s == side] for side in ("ours", "trl")}
    seconds = {side: {name: spread([r.seconds[side, name] for r in timed]) for name in names[side]} for side in names}
    for side in seconds:
        seconds[side]["iteration"] = spread([r.total(side) for r in timed])
    ratios = {
        name: spread([r.seconds["trl", name] / r.seconds["ours", name] for r in timed])
        for name in ("generate", "train")
    }
    ratios["iteration"] = spread([r.total("trl") / r.total("ours") for r in timed])
    peaks = {f"{side} {name}": peak for (side, name), peak in memory.peaks.items() if peak}
    return {"seconds": seconds, "trl_over_ours": ratios, "extra_peak_bytes": peaks}


def run_case(case: Case, folder: Path) -> dict:
    config = make_config(case, folder)
    result: dict = {"case": asdict(case), "parity": check_parity(case, config, folder)}
    print(case.name, "parity", result["parity"], flush=True)
    with Run(check_everything(config, is_resumed=False), resume=False) as run:
        ours = Ours(run)
        settings, scanned = find_settings(case, config, ours.collect(), folder)
        result |= {"trl_settings": settings.name, "trl_settings_s": scanned}
        duel = Duel(ours)
        Peer(case, config, settings, folder).duel(duel, rounds=case.rounds + 2)
        result["kept_share"] = float(duel.rollouts.has_gradient_R.mean())
        result["mean_tokens"] = float(duel.rollouts.completion_lengths_R.mean())
    result |= summarise(duel.rounds)
    result["bars"] = verdicts(case, result)
    return result


def verdicts(case: Case, result: dict) -> dict[str, str]:
    """Each bar with what was measured."""
    ratios, peaks = result["trl_over_ours"], result["extra_peak_bytes"]
    measured = {
        f"training >= {case.train_bar}x": (ratios["train"]["median"], case.train_bar),
        f"iteration >= {case.iteration_bar}x": (ratios["iteration"]["median"], case.iteration_bar),
    }
    if case.memory_bar:
        ratio = peaks.get("ours train", 1) / peaks["trl train"]
        measured["training memory <= 1/3"] = (-round(ratio, 3), -case.memory_bar)
    return {bar: f"{abs(found)} {'meets' if found >= least else 'MISSES'}" for bar, (found, least) in measured.items()}


def markdown(result: dict) -> str:
    lines = ["# GRPO beside TRL on CPU", "", result["machine"], f"TRL {result['trl']}, float32, AdamW fused", ""]
    lines += [f"    {result['command']}", ""]
    for case in result["cases"]:
        sizes = case["case"]
        lines += [
            f"## Vocabulary: {sizes['name']}",
            "",
            f"{sizes['prompts']} × {sizes['rollouts']} rollouts, mean {case['mean_tokens']:.1f} tokens, "
            f"{case['kept_share']:.0%} carry gradient, {sizes['updates']} updates. TRL: {case['trl_settings']}.",
            f"Parity of one update: loss {case['parity']['loss']:.6f} and {case['parity']['loss_trl']:.6f}, "
            f"gradients differ by {case['parity']['gradient_difference']:.1e}.",
            "",
            "| phase | ours, s | p20–p80 | TRL, s | p20–p80 | TRL / ours | p20–p80 | ours, +MiB | TRL, +MiB |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(case, name) for name in ("generate", "verify", "score", "train", "iteration")]
        lines += ["", *(f"- {bar}: {text}" for bar, text in case["bars"].items()), ""]
    return "\n".join(lines)


def _row(case: dict, name: str) -> str:
    cells = [name]
    for values in (case["seconds"]["ours"], case["seconds"]["trl"], case["trl_over_ours"]):
        value = values.get(name)
        cells += [f"{value['median']:.3f}", f"{value['p20']:.3f}–{value['p80']:.3f}"] if value else ["", ""]
    peaks = [case["extra_peak_bytes"].get(f"{side} {name}") for side in ("ours", "trl")]
    cells += ["" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny counts, nothing is written")
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one vocabulary; nothing is written")
    options = parser.parse_args()
    logging.disable_progress_bar()
    cases = [c for c in CASES if options.only in (None, c.name)]
    if options.dry:
        cases = [replace(c, prompts=8 if c.name == "characters" else 4, rounds=2) for c in cases]
    result = {"machine": machine(), "trl": trl_peer.version(), "command": "python bench/bench_trl.py", "cases": []}
    for case in cases:
        folder = Path(tempfile.mkdtemp(prefix="bench-trl-"))
        try:
            result["cases"].append(run_case(case, folder))
        finally:
            shutil.rmtree(folder)
    print(markdown(result))
    if not (options.dry or options.only):
        stem = ROOT / "bench" / "results" / "trl"
        stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
