"""RL on a pretrained model: one-digit arithmetic, PSR beside NSR (and GRPO), pass@k before and after.

    python bench/studies/real/pretrained.py --model FOLDER                              on CPU: 2 objectives × 20 steps
    python bench/studies/real/pretrained.py --model FOLDER --seeds 0 1                  one more seed of each
    python bench/studies/real/pretrained.py --model FOLDER --scale gpu --minutes 8.5    again until it says "finished"

FOLDER is a Hugging Face folder of a base model; the settings were made for Gemma 3 270M. What is there is kept: a call
goes on where the last one stopped, and at its time limit a training run saves a checkpoint. Every part is a `fastrl`
command in a process of its own, its output in WORK/log.txt. Results go to bench/studies/results/real_SCALE.json, for
report.py.
"""

import json
import os
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

from fastrl.records.jsonl import read_jsonl

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

    def __init__(self, scale: Scale, seeds: list[int], model: Path, work: Path, minutes: float):
        self.scale, self.source, self.work = scale, model, work
        self.runs = [(objective, seed) for seed in seeds for objective in scale.objectives]
        self.deadline = time.monotonic() + 60 * minutes
        self.times_path = work / "seconds.json"

    def run(self) -> None:
        if not (self.work / "data" / "test.jsonl").exists():
            arithmetic.write(self.work / "data")
        start = self._model()
        self._evaluate("base", start)
        for objective, seed in self.runs:
            self._train(objective, seed, start)
            self._evaluate(_name(objective, seed), self._checkpoint(_name(objective, seed)))
        self._compare([self._tested(name) for name in ("base", *(_name(*run) for run in self.runs))])
        self._write()

    def _compare(self, tested: list[Path]) -> None:
        """Anew where an evaluation came after the last comparison, which `fastrl compare` does not overwrite."""
        pages = [self.work / f"comparison{suffix}" for suffix in (".png", ".html")]
        last = min((page.stat().st_mtime for page in pages if page.exists()), default=0.0)
        if last < max(path.stat().st_mtime for path in tested):
            for page in pages:
                page.unlink(missing_ok=True)
            self._fastrl("compare", ["compare", *map(str, tested), "--output", str(self.work / "comparison")])

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

    def _train(self, objective: str, seed: int, start: Path) -> None:
        name, scale = _name(objective, seed), self.scale
        run = self.work / name
        if (self._checkpoint(name) / "config.json").exists():
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
            "run.seed": seed,
            "run.num_steps": scale.num_steps,
            "run.checkpoint_every": scale.num_steps,
            "run.keep_last": 1,
        }
        resume = ["--resume"] if (run / "config.toml").exists() else []
        self._fastrl(name, ["train", *flags(settings), "--run.sinks", *resume])

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

    def _checkpoint(self, run: str) -> Path:
        return self.work / run / "checkpoints" / f"step-{self.scale.num_steps:06d}"

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

    def _write(self) -> None:
        """The numbers that are committed: counts by problem, and what each step of training saw."""
        rows = [{"name": o, "seed": s, "test": self._tests(_name(o, s)), **self._by_step(o, s)} for o, s in self.runs]
        seeds = " ".join(str(seed) for seed in dict.fromkeys(seed for _, seed in self.runs))
        command = f"python bench/studies/real/pretrained.py --model FOLDER --scale {self.scale.name} --seeds {seeds}"
        result = {"machine": machine(), "command": command, "model": self.source.name, "settings": asdict(self.scale)}
        result |= {"seconds": self._times(), "base": self._tests("base"), "rows": rows}
        if self.scale.name != "dry":
            RESULTS.mkdir(exist_ok=True)
            path = RESULTS / f"real_{self.scale.name}.json"
            path.write_text(json.dumps(result, separators=(",", ":")) + "\n")

    def _tests(self, name: str) -> dict[str, object]:
        evaluation = json.loads(self._tested(name).read_text())
        curve = "  ".join(f"@{k} {100 * v['mean']:.1f}" for k, v in evaluation["pass_at_k"].items())
        print(f"{name:>10}  {curve}  entropy {evaluation['mean_token_entropy']:.2f}")
        columns = {"num_correct": "num_correct", "ids": "id"}
        counts = {column: [p[key] for p in evaluation["problems"]] for column, key in columns.items()}
        kept = ("num_samples", "mean_token_entropy", "distinct_answers", "truncated_share")
        return {key: evaluation[key] for key in kept} | counts

    def _by_step(self, objective: str, seed: int) -> dict[str, list[float]]:
        steps = [s for s in read_jsonl(self.work / _name(objective, seed) / "metrics.jsonl") if "reward/mean" in s]
        return {f"{name} by step": [round(step[name], 4) for step in steps] for name in BY_STEP}


def _name(objective: str, seed: int) -> str:
    return f"{objective}.seed{seed}"


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, help="default: runs/real-SCALE in the repository")
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    work = (options.work or HERE.parents[2] / "runs" / f"real-{options.scale}").resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        Study(SCALES[options.scale], options.seeds, options.model, work, options.minutes).run()
    except OutOfTime:
        sys.exit("the time is over; the same command goes on")
    print("finished")


if __name__ == "__main__":
    main()
