"""Measures rows in this process and appends a line of each to a file. A row that fails is a line that says how.

python bench/speedrun/measure.py FILE COMMIT MINUTES DRY NAME...      called by speedrun.py
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

import gpu_iteration
import gpu_table
import gpu_train
import torch
from machine import Table
from origin import ROOT, origin
from rows import BY_NAME
from transformers import AutoModelForCausalLM

from fastrl.plan.cards import card_of
from fastrl.plan.flops import ModelShape, Sequences, training_flops


def tests(sizes: dict[str, Any], minutes: float) -> dict[str, Any]:
    files = [str(ROOT / "tests" / name) for name in sizes["files"]]
    parallel = ["-n", "12"] if importlib.util.find_spec("xdist") else []  # most of the time goes into compiling
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *files, *parallel, *options], stdout=subprocess.PIPE, text=True
    )
    print(result.stdout, flush=True)
    last = result.stdout.strip().rpartition("\n")[2].strip("= ")
    return {"failed": last} if result.returncode else {"note": last}


def kernels(sizes: dict[str, Any], minutes: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        table = Table("", "", Path(folder), "rows")
        gpu_table.check()
        gpu_table.Case(**sizes).run(table, gpu_table.Clock(minutes))
    return {"timings": [asdict(row) for row in table.rows]}


def train(sizes: dict[str, Any], minutes: float) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    line = gpu_train.one(gpu_train.Work(**sizes), device)
    if "failed" in line:
        return {"failed": line["failed"]}
    seconds = statistics.median(line["update_s"])
    found = {"tokens_per_s": line["tokens_per_s"], "mfu": line.get("mfu"), "peak_gib": line["memory"].get("peak")}
    said = {name: line[name] for name in ("settings", "attention", "startup_s") if name in line}
    return found | {"step_s": seconds, "phases": {"update": seconds}, "note": "; ".join(map(str, said.values()))}


def iteration(sizes: dict[str, Any], minutes: float) -> dict[str, Any]:
    work = gpu_iteration.Work("speedrun", **sizes)
    line = gpu_iteration.one(work)
    if "failed" in line:
        return {"failed": line["failed"]}
    found = {"tokens_per_s": line["tokens_per_s"], "step_s": line["iteration_s"], "peak_gib": line.get("peak_gib")}
    note = f"{line['update/kept_share']:.0%} with gradient" if "update/kept_share" in line else ""
    return found | {"mfu": update_mfu(work, line), "phases": line["seconds"], "note": note}


def update_mfu(work: gpu_iteration.Work, line: dict[str, Any]) -> float | None:
    """Of our update alone, for what carries gradient. None where lengths vary and on an unknown card."""
    card = None if work.is_dry else card_of(torch.cuda.get_device_name())
    if card is None or work.who != "fastrl" or work.lengths != "equal":
        return None
    with torch.device("meta"):
        shape = ModelShape.of(AutoModelForCausalLM.from_config(gpu_train.SHAPES[work.shape], dtype=torch.bfloat16))
    num_kept = round(line["update/kept_share"] * work.num_rollouts)
    kept = Sequences(work.prompts, num_kept, work.prompt, work.completion)
    return round(training_flops(shape, kept) / line["seconds"]["train"] / card.flops_per_s, 4)


MEASURES: dict[str, Callable[[dict[str, Any], float], dict[str, Any]]] = {
    "tests": tests,
    "kernels": kernels,
    "train": train,
    "iteration": iteration,
}


def line_of(name: str, commit: str, minutes: float, is_dry: bool) -> dict[str, Any]:
    row = BY_NAME[name]
    try:
        found = MEASURES[row.kind](row.sizes(is_dry), minutes)
    except Exception as error:  # a size or a peer may fail in any way
        found = {"failed": f"{type(error).__name__}: {error}".split("\n")[0][:300]}
    return {"row": name, "is_dry": is_dry} | origin(commit) | found


def main(file: str, commit: str, minutes: str, is_dry: str, *names: str) -> None:
    for name in names:
        line = json.dumps(line_of(name, commit, float(minutes), is_dry == "dry"))
        with Path(file).open("a") as results:
            results.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
