"""Whole iterations on one GPU by phase: generate, verify, score, update, publish, prove. Random weights at true shapes.

    python bench/gpu_iteration.py --out DIR [--minutes 8.5]     runs what DIR/gpu_iteration.jsonl has not got
    python bench/gpu_iteration.py --out DIR --one NAME [NAME…]  these rows, again or for the first time
    python bench/gpu_iteration.py --out DIR --dry-run [--sampler embedded]       tiny shapes on a CPU, the same code

Every row is a process of its own and a line of the file, with card, versions and commit; one that fails is a line that
says how. The iterations are steps of a real run: prompts of a file, a verifier that judges completions while others are
sampled, rewards, records. Lengths are equal, or a long tail (log-normal) that is forced on both sides alike. Each phase
ends with a synchronisation; `rest` is what no phase claims. The first iteration compiles; the others are medians.
Beside it TRL's GRPOTrainer with vLLM colocated, on the same prompts and lengths, where it runs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from iteration_work import Work, lengths_of, prepare
from origin import measured_commit, origin

WORKS = [
    Work(f"{shape} {lengths} {who}", who, shape, lengths, **({"kv_gib": 16.0, "micro_batch": 8} if big else {}))
    for shape, big in (("qwen3-0.6b", False), ("qwen3-1.7b", True))
    for lengths in ("equal", "varied")
    for who in ("fastrl", "trl")
]
LONG = {"lengths": "varied", "completion": 4096, "micro_batch": 4, "prompts": 16}
WORKS += [
    Work("qwen3-0.6b varied fastrl nsr", lengths="varied", objective="nsr"),
    Work("qwen3-0.6b varied fastrl fp8", lengths="varied", kv_cache_dtype="fp8"),
    Work("qwen3-0.6b varied fastrl copy", lengths="varied", weights="copy"),
    Work("qwen3-0.6b long fastrl", **LONG),
    Work("qwen3-0.6b long fastrl fp8", **LONG, kv_cache_dtype="fp8"),
]
TINY = {"shape": "tiny", "prompts": 4, "prompt": 16, "completion": 24, "micro_batch": 4, "kv_gib": 1 / 32}


def works(is_dry: bool, sampler: str) -> list[Work]:
    """All rows; dry: tiny ones, without the settings that the embedded sampler does not have."""
    if not is_dry:
        return WORKS
    small = [work for work in WORKS if work.shape == "qwen3-0.6b" and work.completion < LONG["completion"]]
    tiny = [replace(work, **TINY, sampler=sampler, iterations=2, is_dry=True) for work in small]
    return [work for work in tiny if sampler == "vllm" or (work.kv_cache_dtype, work.weights) == ("auto", "alias")]


def one(work: Work) -> dict:
    """The line of a row: medians of all iterations but the first, or how it failed."""
    import iteration_ours
    import iteration_trl

    if work.is_dry:
        torch.set_num_threads(1)  # threads that wait for each other take longer than so little work
    side = {"fastrl": iteration_ours, "trl": iteration_trl}[work.who]
    with tempfile.TemporaryDirectory() as folder:
        try:
            prepare(work, Path(folder))
            found = side.measure(work, Path(folder))
        except Exception as error:  # a peer, a version or a size that does not run is a result, whatever it raises
            return {"failed": f"{type(error).__name__}: {error}".split("\n")[0][:400]}
    iterations = found["iterations"]
    later = iterations[1:] or iterations
    seconds = {phase: round(statistics.median(i[phase] for i in later), 6) for phase in later[0]}
    walls, num_tokens = [sum(i.values()) for i in later], sum(lengths_of(work))
    line = {"seconds": seconds, "iteration_s": round(statistics.median(walls), 4), "tokens": num_tokens}
    line["generated_per_s"] = round(num_tokens / seconds["generate"])
    line["tokens_per_s"] = round(num_tokens / statistics.median(walls))
    return line | found


def header(work: Work, commit: str) -> dict:
    return {"name": work.name} | origin(commit) | {"settings": asdict(work)}


def run_one(work: Work, options: argparse.Namespace, left_s: float) -> dict:
    """The row's line, from a process of its own."""
    command = [sys.executable, __file__, "--child", work.name, "--sampler", options.sampler]
    command += ["--commit", options.commit, *["--dry-run"] * options.dry_run]
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=left_s)
    except subprocess.TimeoutExpired:
        return header(work, options.commit) | {"failed": f"not done after {left_s:.0f} s"}
    last = result.stdout.strip().rpartition("\n")[2]
    if result.returncode or not last.startswith("{"):
        return header(work, options.commit) | {"failed": f"the process ended with status {result.returncode}"}
    return json.loads(last)


def run_all(options: argparse.Namespace) -> None:
    """The rows that were asked for, or all that are missing, until the time is up."""
    options.out.mkdir(parents=True, exist_ok=True)
    path, end = options.out / f"gpu_iteration{'_dry' * options.dry_run}.jsonl", time.monotonic() + 60 * options.minutes
    done = {json.loads(line)["name"] for line in path.read_text().splitlines()} if path.exists() else set()
    known = {work.name: work for work in works(options.dry_run, options.sampler)}
    if unknown := [name for name in options.one or () if name not in known]:
        raise SystemExit(f"no row is called {unknown[0]!r}; there are: {', '.join(known)}")
    for name in options.one or [name for name in known if name not in done]:
        if (left_s := end - time.monotonic()) < 20:
            raise SystemExit(f"out of time before {name!r}: start again to go on")
        line = run_one(known[name], options, left_s)
        print(json.dumps({k: v for k, v in line.items() if k not in ("settings", "iterations")}), flush=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    lines = {line["name"]: line for line in map(json.loads, path.read_text().splitlines())}  # the last of each
    path.with_suffix(".md").write_text(markdown(list(lines.values())))


def markdown(lines: list[dict]) -> str:
    phases = list(dict.fromkeys(phase for line in lines for phase in line.get("seconds", {})))
    rows = ["# Whole iterations", "", lines[0]["card"], "", "Seconds by phase, medians.", ""]
    rows += [f"| row | iteration | {' | '.join(phases)} | tokens/s generated | peak GiB | note |"]
    rows += ["|---" * (len(phases) + 5) + "|"]
    for line in lines:
        seconds = [f"{line['seconds'][p]:.3f}" if p in line.get("seconds", {}) else "" for p in phases]
        cells = [line["name"], line.get("iteration_s", ""), *seconds, line.get("generated_per_s", "")]
        rows.append(f"| {' | '.join(map(str, [*cells, line.get('peak_gib', ''), line.get('failed', '')]))} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--sampler", choices=("vllm", "embedded"), default="vllm", help="of a dry run")
    parser.add_argument("--one", nargs="+", help="names of rows, done before or not")
    parser.add_argument("--commit", help="what is measured, where there is no git")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: --dry-run takes tiny shapes through the same code")
    options.commit = options.commit or measured_commit()
    if options.child:
        work = next(w for w in works(options.dry_run, options.sampler) if w.name == options.child)
        print(json.dumps(header(work, options.commit) | one(work)))
        return
    run_all(options)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"gpu_iteration: {error}")
