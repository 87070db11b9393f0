"""A run that is killed at one file event after another, and resumed each time: a program of its own, for `test_chaos`.

    python chaos_kills.py FOLDER MODE STRIDE

Every STRIDE-th file event of a run is one kill. MODE is ckpt-chaos's: before (the event never happens), torn (the file
is cut in half), unsynced (a power cut: what was not synced is gone). Runs are forks of this process, which has imported
everything and started no thread. Prints a line for each run that does not end as the undisturbed one, then the count.
"""

import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from ckpt_chaos import inject
from test_training import config_of

from fastrl.config.schema import EvaluationConfig, LedgerConfig, ScratchConfig, TrainConfig
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.records import checkpoints
from fastrl.records.jsonl import read_jsonl
from fastrl.run.training import train

KILLED = 137


def small_config(folder: Path, model: Path) -> TrainConfig:
    """Four steps, two checkpoints, two validations, three lines of a ledger."""
    return replace(
        config_of(folder, model),
        evaluation=EvaluationConfig(every=2, num_samples=2),
        ledger=LedgerConfig(every=2, num_prompts=2, num_samples=4, num_positions=4, top_k=2),
    )


def save_model(folder: Path) -> None:
    config = ScratchConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)
    tokenizer = scratch_tokenizer(config)
    scratch_model(config, tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def forked(action: Callable[[], object], log: Path) -> int:
    """The exit status of a fork that does `action`, its output in `log`."""
    child = os.fork()
    if child == 0:
        status = 1
        with log.open("w") as output:
            os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
            with contextlib.suppress(Exception):
                try:
                    action()
                    status = 0
                except Exception:
                    traceback.print_exc()
            sys.stdout.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def armed(config: TrainConfig, log: Path, event: int | None, mode: str) -> None:
    inject.arm(config.run.folder, event, mode, str(log), torn_python=True)
    train(config)


def end_of(folder: Path, mode: str) -> dict:
    """What must be the same after a kill: checkpoints bit for bit, and every record once.

    A tear may take synced lines of a file that grows, which no power cut does: there the checkpoints alone.
    """
    found = {}
    for name in ("step-000002", "step-000004", "best"):
        path = folder / "checkpoints" / name
        found[f"{name} is sound"] = checkpoints.defect(path)
        found |= {f"{name}/{p.name}": p.read_bytes() for p in path.glob("*.safetensors")}
        found |= {f"{name}: {key}": value.tolist() for key, value in checkpoints.load_tensors(path).items()}
    if mode == "torn":
        return found
    found["metrics"] = [row["step"] for row in read_jsonl(folder / "metrics.jsonl")]
    found["ledger"] = read_jsonl(folder / "ledger.jsonl")
    found["eval"] = sorted(p.name for p in (folder / "eval").glob("*.json"))
    return found | {p.name: p.read_bytes() for p in (folder / "rollouts").glob("step-*")}


def main(root: Path, mode: str, stride: int) -> int:
    torch.set_num_threads(1)
    model, log, events = root / "model", root / "output.txt", root / "events.txt"
    save_model(model)
    undisturbed = small_config(root / "undisturbed", model)
    assert forked(lambda: armed(undisturbed, events, None, mode), log) == 0, log.read_text()
    expected = end_of(root / "undisturbed", mode)
    lines = [line.split("\t") for line in events.read_text().splitlines()]
    kills = [line for line in lines if mode != "torn" or line[3] == "1"][::stride]
    for number, kind, name, _ in kills:
        config = small_config(root / "run", model)
        shutil.rmtree(root / "run", ignore_errors=True)
        status = forked(lambda config=config, number=number: armed(config, events, int(number), mode), log)
        if status != KILLED:
            print(f"{number} {kind} {name}: not killed ({status}): {log.read_text()}")
        elif forked(lambda config=config: train(config, resume=True), log):
            print(f"{number} {kind} {name}: not resumed: {log.read_text()}")
        elif different := [k for k, v in end_of(root / "run", mode).items() if v != expected.get(k)]:
            print(f"{number} {kind} {name}: another end: {', '.join(different)}")
    print(f"{len(kills)} kills at {len(lines)} file events")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
