"""RL on a pretrained model: one-digit arithmetic, PSR beside NSR (and GRPO), pass@k before and after.

    python bench/studies/real/pretrained.py --model FOLDER                              on CPU: 2 objectives × 20 steps
    python bench/studies/real/pretrained.py --model FOLDER --scale gpu --minutes 8.5    again until it says "finished"

FOLDER is a Hugging Face folder of a base model; the settings were made for Gemma 3 270M. What is there is kept: a call
goes on where the last one stopped, and at its time limit a training run saves a checkpoint. Every part is a `fastrl`
command in a process of its own, its output in WORK/log.txt. Results go to bench/studies/results/real_SCALE.json, with
a figure.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import arithmetic
from machine import machine

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"


@dataclass(frozen=True)
class Scale:
    """How much of the experiment, and where."""

    name: str
    device: str
    dtype: str
    objectives: tuple[str, ...]
    num_steps: int
    prompts: int
    rollouts: int
    lr: float
    num_samples: int  # of each of the 100 test problems


SCALES = {
    "dry": Scale("dry", "cpu", "float32", ("psr",), 2, 2, 4, 1e-6, 4),
    "cpu": Scale("cpu", "cpu", "float32", ("psr", "nsr"), 20, 32, 16, 2e-6, 64),
    "gpu": Scale("gpu", "cuda", "bfloat16", ("psr", "nsr", "grpo"), 100, 64, 16, 2e-6, 256),
}
MICRO_BATCH_TOKENS = 4096
BY_STEP = ("reward/mean", "update/kept_share", "grad_norm", "entropy/mean")


def flags(settings: dict[str, object]) -> list[str]:
    """The command line's words for settings by name."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


class OutOfTime(Exception):
    """The call's minutes are over; what was done is kept."""


class Study:
    """The parts of the experiment in `work`, each one made once."""

    def __init__(self, scale: Scale, model: Path, work: Path, minutes: float):
        self.scale, self.source, self.work = scale, model, work
        self.deadline = time.monotonic() + 60 * minutes
        self.times_path = work / "seconds.json"

    def run(self) -> None:
        if not (self.work / "data" / "test.jsonl").exists():
            arithmetic.write(self.work / "data")
        start = self._model()
        self._evaluate("base", start)
        for objective in self.scale.objectives:
            self._train(objective, start)
            self._evaluate(objective, self.work / objective / "checkpoints" / f"step-{self.scale.num_steps:06d}")
        names = ("base", *self.scale.objectives)
        if not (self.work / "comparison.html").exists():
            tested = [str(self._tested(name)) for name in names]
            self._fastrl("compare", ["compare", *tested, "--output", str(self.work / "comparison")])
        self._write(names)

    def _model(self) -> Path:
        """The source, with the end of a line as an end of a completion: base models do not stop after an answer."""
        folder = self.work / "model"
        if not (folder / "generation_config.json").exists():
            from transformers import AutoTokenizer

            folder.mkdir(parents=True, exist_ok=True)
            for path in self.source.resolve().iterdir():
                if path.name != "generation_config.json" and not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path)
            tokenizer = AutoTokenizer.from_pretrained(self.source)
            (newline,) = tokenizer("\n", add_special_tokens=False).input_ids
            stops = {"eos_token_id": [tokenizer.eos_token_id, newline]}
            (folder / "generation_config.json").write_text(json.dumps(stops) + "\n")
        return folder

    def _train(self, objective: str, start: Path) -> None:
        run, scale = self.work / objective, self.scale
        if (run / "checkpoints" / f"step-{scale.num_steps:06d}" / "config.json").exists():
            return
        settings = self._task(start) | {
            "algorithm.objective": objective,
            "batch.prompts_per_step": scale.prompts,
            "batch.rollouts_per_prompt": scale.rollouts,
            "batch.micro_batch_tokens": MICRO_BATCH_TOKENS,
            "optimizer.lr": scale.lr,
            "task.train": self.work / "data" / "train.jsonl",
            "task.num_train": 0,
            "evaluation.at_end": False,
            "run.folder": run,
            "run.num_steps": scale.num_steps,
            "run.checkpoint_every": scale.num_steps,
            "run.keep_last": 1,
        }
        resume = ["--resume"] if (run / "config.toml").exists() else []
        self._fastrl(objective, ["train", *flags(settings), "--run.sinks", *resume])

    def _evaluate(self, name: str, model: Path) -> None:
        if self._tested(name).exists():
            return
        settings = self._task(model) | {
            "output": self._tested(name),
            "task.num_test": 0,
            "evaluation.num_samples": self.scale.num_samples,
            "evaluation.seed": 1,
        }
        self._fastrl(f"{name} evaluation", ["eval", *flags(settings)])

    def _tested(self, name: str) -> Path:
        return self.work / f"{name}.json"

    def _loaded(self, model: Path) -> dict[str, object]:
        return {"model.path": model, "model.device": self.scale.device, "model.dtype": self.scale.dtype}

    def _task(self, model: Path) -> dict[str, object]:
        return self._loaded(model) | {
            "task.name": "arithmetic:reward",
            "task.test": self.work / "data" / "test.jsonl",
            "sampler.max_new_tokens": 5,
            "sampler.batch_size": 512,
        }

    def _fastrl(self, part: str, arguments: list[str]) -> None:
        """Runs one command until it ends or the time is over. RuntimeError when it fails."""
        left = self.deadline - time.monotonic()
        if left < 20:
            raise OutOfTime
        print(f"{part} …", flush=True)
        start = time.perf_counter()
        with (self.work / "log.txt").open("a") as log:
            command = [sys.executable, "-m", "fastrl.cli", *arguments]
            environment = os.environ | {"PYTHONSAFEPATH": "1"}
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=HERE)
        try:
            status = process.wait(left)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.send_signal(signal.SIGTERM)  # training saves a checkpoint; an evaluation is started anew next time
            process.wait()
            raise OutOfTime from None
        finally:
            self._add_time(part, time.perf_counter() - start)
        if status:
            raise RuntimeError(f"{part} ended with status {status}; see {self.work / 'log.txt'}")

    def _times(self) -> dict[str, float]:
        return json.loads(self.times_path.read_text()) if self.times_path.exists() else {}

    def _add_time(self, part: str, seconds: float) -> None:
        times = self._times()
        times[part] = round(times.get(part, 0.0) + seconds, 1)
        self.times_path.write_text(json.dumps(times))

    def _write(self, names: tuple[str, ...]) -> None:
        """The numbers that are committed: curves, counts by problem, and what each step of training saw."""
        evaluations = {name: json.loads(self._tested(name).read_text()) for name in names}
        kept = ("num_samples", "pass_at_k", "mean_token_entropy", "distinct_answers", "truncated_share")
        rows = {name: {key: e[key] for key in kept} for name, e in evaluations.items()}
        for name, evaluation in evaluations.items():
            rows[name]["num_correct"] = [p["num_correct"] for p in evaluation["problems"]]
        for objective in self.scale.objectives:
            lines = [json.loads(line) for line in (self.work / objective / "metrics.jsonl").read_text().splitlines()]
            steps = [line for line in lines if "reward/mean" in line]
            for name in BY_STEP:
                rows[objective][f"{name} by step"] = [round(step[name], 4) for step in steps]
        result = {
            "machine": machine(),
            "command": f"python bench/studies/real/pretrained.py --model FOLDER --scale {self.scale.name}",
        }
        result |= {"model": self.source.name, "settings": asdict(self.scale), "seconds": self._times(), "rows": rows}
        if self.scale.name != "dry":
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"real_{self.scale.name}.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
            shutil.copy(self.work / "comparison.png", HERE / f"pass_at_k_{self.scale.name}.png")
        for name, row in rows.items():
            curve = "  ".join(f"@{k} {100 * v['mean']:.1f}" for k, v in row["pass_at_k"].items())
            print(f"{name:>6}  {curve}  entropy {row['mean_token_entropy']:.2f}")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--work", type=Path, help="default: runs/real-SCALE in the repository")
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    work = (options.work or HERE.parents[2] / "runs" / f"real-{options.scale}").resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        Study(SCALES[options.scale], options.model, work, options.minutes).run()
    except OutOfTime:
        sys.exit("the time is over; the same command goes on")
    print("finished")


if __name__ == "__main__":
    main()
