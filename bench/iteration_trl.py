"""TRL's side of a whole iteration: GRPOTrainer with vLLM colocated, its own loop, clocks at the borders of its phases.

Generation, the hand-over of weights and the reward are timed on TRL's own methods; `train` is what is left of an
iteration: old log-probs, loss, backward, optimizer. float32 weights under bfloat16 autocast, the precision of our
float32 masters. One change: the requests' max_tokens are those of the measurement and no token ends them.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from iteration_reward import reward
from iteration_work import NUM_SAMPLES, Work, lengths_of, prompt_texts
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

GIB = 1 << 30
PHASES = ("generate", "verify", "publish")


class Clock:
    """Seconds by phase of the iteration that runs, and of those that are done."""

    def __init__(self, device: str):
        self.device, self.iterations = device, []
        self.begin()

    def begin(self) -> None:
        self.start, self.phases = self.now(), dict.fromkeys(PHASES, 0.0)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, phase: str, function: Callable) -> Callable:
        def run(*arguments: object, **options: object) -> object:
            start = self.now()
            try:
                return function(*arguments, **options)
            finally:
                self.phases[phase] += self.now() - start

        return run

    def end(self) -> None:
        wall = self.now() - self.start
        self.iterations.append(self.phases | {"train": wall - sum(self.phases.values())})
        self.begin()


def arguments(work: Work, folder: Path):
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=work.micro_batch,
        gradient_accumulation_steps=work.num_rollouts // work.micro_batch,
        max_steps=work.iterations,
        num_generations=NUM_SAMPLES,
        max_completion_length=work.completion,
        beta=0.0,
        loss_type="dr_grpo",
        scale_rewards="none",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        bf16=work.device == "cuda",
        gradient_checkpointing=False,
        use_cpu=work.device == "cpu",
        use_vllm=True,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=work.trl_share,
        vllm_max_model_length=work.length + 8,
        generation_kwargs={"ignore_eos": True},
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def bounded(generate: Callable, lengths: list[int]) -> Callable:
    """vLLM's `generate` with a max_tokens of its own for each prompt."""

    def run(prompts: list, sampling_params: object, **options: object) -> list:
        each = [copy.copy(sampling_params) for _ in prompts]
        for one, length in zip(each, lengths, strict=True):
            one.max_tokens = length
        return generate(prompts, sampling_params=each, **options)

    return run


def measure(work: Work, folder: Path) -> dict:
    """As that of our side."""
    from datasets import Dataset
    from trl import GRPOTrainer

    clock = Clock(work.device)

    def rewards(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        return [reward(p, c, answer=r"\frac{2}{3}") for p, c in zip(prompts, completions, strict=True)]

    class EndOfIteration(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            clock.begin()

        def on_step_end(self, *_: object, **__: object) -> None:
            clock.end()

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        reward_funcs=clock.timed("verify", rewards),
        args=arguments(work, folder),
        train_dataset=Dataset.from_list([{"prompt": text} for text in prompt_texts(work)]),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[EndOfIteration()],
    )
    trainer.remove_callback(PrinterCallback)
    engine = trainer.vllm_generation
    engine.llm.generate = bounded(engine.llm.generate, lengths_of(work))
    engine.generate = clock.timed("generate", engine.generate)
    engine.sync_weights = clock.timed("publish", engine.sync_weights)
    trainer.train()
    found: dict = {"iterations": clock.iterations}
    if work.device == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    return found
