"""TRL's GRPOTrainer as a peer: its own training loop, with completions injected and clocks at its phases' borders.

What is TRL's stays TRL's: `rollout_func` is its own way to take completions from elsewhere, the borders of its training
phase are the end of the reward function and its callback after the last update. Generation is timed on its own method.
"""

import importlib.metadata
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peak_memory import given_back, resident_bytes
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)

from fastrl.config.schema import TrainConfig
from fastrl.prompts.stream import PromptStream
from fastrl.prompts.tokens import prompt_ids
from fastrl.rollouts import Rollouts
from fastrl.tasks import load_task
from fastrl.trainer import Trainer

Phase = Callable[[Callable[[], object], bool], tuple[object, float, int]]


def version() -> str:
    return importlib.metadata.version("trl")


@dataclass(frozen=True)
class Settings:
    """What is varied: micro-batches of one update, autocast to bfloat16, gradient checkpointing, Liger's modules."""

    parts: int
    bf16: bool
    recompute: bool = False
    liger: bool = False

    @property
    def name(self) -> str:
        words = [f"{self.parts} micro-batch(es) an update", "bfloat16 autocast" if self.bf16 else "float32"]
        words += ["gradient checkpointing"] * self.recompute + ["Liger's modules"] * self.liger
        return ", ".join(words)


@dataclass
class Round:
    """Seconds and extra peak bytes by (side, phase)."""

    has_memory: bool
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    peaks: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, side: str, name: str, seconds: float, peak: int = 0) -> None:
        self.seconds[side, name], self.peaks[side, name] = seconds, peak

    def total(self, side: str) -> float:
        return sum(seconds for (s, _), seconds in self.seconds.items() if s == side)


@dataclass
class Host:
    """What runs at the borders of TRL's training phase. The base class injects the same completions every round."""

    rollouts: Rollouts
    rounds: list[Round] = field(default_factory=list)

    def before_training(self, peer: "Peer") -> Rollouts:
        self.current = Round(has_memory=False)
        return self.rollouts

    def after_training(self) -> None:
        self.rounds.append(self.current)


@dataclass(frozen=True)
class LossAndGradient:
    loss: float
    gradients: dict[str, Tensor]


class Peer:
    """One GRPOTrainer for a case (prompts, rollouts, updates, max_new_tokens), a config of ours and its settings.

    Model and tokenizer are those of config.model.path, in float32, unless they are given.
    """

    def __init__(
        self,
        case,
        config: TrainConfig,
        settings: Settings,
        folder: Path,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        self.case, self.config, self.settings, self.folder = case, config, settings, folder
        self.reward = load_task(config.task, splits=()).reward
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(config.model.path)
        self.model = model or AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)

    def _trainer(self, host: Host, rounds: int, callback: TrainerCallback):
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        case, num_rollouts = self.case, self.case.prompts * self.case.rollouts
        arguments = GRPOConfig(
            output_dir=str(self.folder / "trl"),
            per_device_train_batch_size=num_rollouts // case.updates // self.settings.parts,
            gradient_accumulation_steps=self.settings.parts,
            steps_per_generation=case.updates * self.settings.parts,
            max_steps=rounds * case.updates,
            num_generations=case.rollouts,
            max_completion_length=case.max_new_tokens,
            temperature=1.0,
            top_k=0,
            beta=0.0,
            loss_type="dapo",
            scale_rewards="none",
            learning_rate=self.config.optimizer.lr,
            lr_scheduler_type="constant",
            max_grad_norm=self.config.optimizer.max_grad_norm,
            optim="adamw_torch_fused",
            bf16=self.settings.bf16,
            gradient_checkpointing=self.settings.recompute,
            use_liger_kernel=self.settings.liger,
            use_cpu=self.model.device.type == "cpu",
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )

        def rewards(completions: list[str], **_: object) -> list[float]:
            values = self._injected.rewards_R.tolist()
            self._start(host.current.has_memory)
            return values

        def rollout(prompts: list[str], trainer: object) -> dict[str, list]:
            self.trainer = trainer
            self._injected = host.before_training(self)
            indices, batch = range(len(self._injected)), self._injected
            completions = [batch.completion(i).tolist() for i in indices]
            return {
                "prompt_ids": [batch.prompt(i).tolist() for i in indices],
                "completion_ids": completions,
                "logprobs": None,
            }

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rollout_func is called experimental
            trainer = GRPOTrainer(
                model=self.model,
                reward_funcs=rewards,
                args=arguments,
                train_dataset=Dataset.from_list([{"prompt": "1 2 3 4=24:"}] * case.prompts),
                processing_class=self.tokenizer,
                rollout_func=rollout,
                callbacks=[callback],
            )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _start(self, has_memory: bool) -> None:
        """The training phase begins: the last thing before it is the reward."""
        self.synchronize()
        self._before = given_back() if has_memory else 0
        self._begin = time.perf_counter()

    def synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()

    def duel(self, host: Host, rounds: int) -> None:
        """Run TRL's loop; a round of `host` ends with the last update on its completions."""
        peer, updates = self, self.case.updates

        class EndOfRound(TrainerCallback):
            def on_step_end(self, arguments, state, control, **_):
                if state.global_step % updates == 0:
                    peer.synchronize()
                    seconds = time.perf_counter() - peer._begin
                    peak = resident_bytes("VmHWM") - peer._before if host.current.has_memory else 0
                    host.current.add("trl", "train", seconds, peak)
                    host.after_training()

        self._trainer(host, rounds, EndOfRound()).train()

    def train_seconds(self, rollouts: Rollouts, rounds: int) -> list[float]:
        """Seconds of the training phase, round by round, always on the same completions."""
        host = Host(rollouts)
        self.duel(host, rounds)
        return [r.seconds["trl", "train"] for r in host.rounds]

    def gradient_of(self, rollouts: Rollouts) -> LossAndGradient:
        """Loss and gradient, before clipping, of the one update that a round makes."""
        found: dict = {"loss": 0.0}
        model = self.model

        class Recorder(TrainerCallback):
            def on_pre_optimizer_step(self, *_: object, **__: object):
                found["gradients"] = {n: p.grad.clone() for n, p in model.named_parameters()}

        trainer = self._trainer(Host(rollouts), 1, Recorder())
        trainer.args.max_grad_norm = 0.0
        original = trainer.compute_loss

        def compute_loss(*arguments, **settings):
            loss = original(*arguments, **settings)
            found["loss"] += loss.item()
            return loss

        trainer.compute_loss = compute_loss
        trainer.train()
        return LossAndGradient(**found)

    @torch.no_grad()
    def copy_weights(self, model: PreTrainedModel) -> None:
        for mine, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs)

    def next_prompts(self, ours: Trainer) -> list[list[int]]:
        """The prompts that our next step will take, once per rollout as TRL wants them."""
        stream = PromptStream(ours.prompts.problems, ours.prompts.seed, ours.prompts.position)
        problems = stream.take(self.case.prompts)
        self._problems = [p for p in problems for _ in range(self.case.rollouts)]
        return [prompt_ids(ours.arena.task, p, self.tokenizer) for p in self._problems]

    def generate(self, prompts: list[list[int]], current: Round, phase: Phase) -> None:
        """TRL's own sampling of these prompts, then decoding and the same reward, called in this process."""
        run = lambda: self.trainer._generate_single_turn(prompts, None, {}, self.case.rollouts)  # noqa: E731
        (completions, _), seconds, peak = phase(run, current.has_memory)
        current.add("trl", "generate", seconds, peak)
        start = time.perf_counter()
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        for problem, text in zip(self._problems, texts, strict=True):
            self.reward(problem.prompt, text, **problem.row)
        current.add("trl", "verify", time.perf_counter() - start)
