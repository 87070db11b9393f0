"""The kernel table: correctness, then every bar beside its floor and its peers, in one process and under a deadline.

    python bench/gpu_table.py [--out DIR] [--minutes 5]        on a machine without CUDA: a dry run at toy sizes
    TRITON_INTERPRET=1 python bench/gpu_table.py               the dry run with both Triton kernels, interpreted

Milliseconds are the device's, between two events behind a wait that lets the host get ahead; beside them is the median
wall time, host included. Floors are measured in the same run: a read-only reduction over the logits, an in-place `mul_`
on them, three bare `torch.mm`s; kernel_bars.py says what may be lost to them. Writes gpu.json, gpu.md after every row.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import gpu_contestants as contestants
import torch
from gpu_contestants import Linear, Logits
from kernel_bars import HALF_IDLE, verdict_of
from machine import Row, Table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AHEAD_CYCLES = 3_000_000  # of waiting on the device, about 2 ms: longer than the host takes to launch an operation


class Clock:
    """Stops starting new measurements when the time is up; a row says so."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.end


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def wall_ms(run: Callable) -> float:
    begin = time.perf_counter()
    run()
    synchronize()
    return 1e3 * (time.perf_counter() - begin)


def device_ms(run: Callable) -> float:
    if DEVICE != "cuda":
        return wall_ms(run)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(AHEAD_CYCLES)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def times_ms(run: Callable, clock: Callable, budget_s: float = 0.3) -> list[float]:
    """Sorted times of 3 to 20 runs after two for warming up."""
    for _ in range(2):
        run()
    synchronize()
    found, start = [], time.monotonic()
    while len(found) < 3 or (len(found) < 20 and time.monotonic() - start < budget_s):
        found.append(clock(run))
    return sorted(found)


def extra_bytes(run: Callable, is_in_place: bool) -> int | None:
    """Peak allocation beside what was there before and, unless it may lie in the inputs, what `run` returns."""
    if DEVICE != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = run()
    synchronize()
    returned = 0 if is_in_place else sum(x.numel() * x.element_size() for x in out)
    return torch.cuda.max_memory_allocated() - before - returned


def measure(table: Table, clock: Clock, what: str, shape: str, who: str, run: Callable, memory: str = "") -> None:
    """Add a row; with its verdict, where there is a bar. memory: "" not measured, in_place, or beside (the results)."""
    if clock.is_over:
        table.rows.append(Row(what, shape, who, note="not run: out of time"))
        return
    try:
        peak = extra_bytes(run, memory == "in_place") if memory else None
        found, wall = times_ms(run, device_ms), statistics.median(times_ms(run, wall_ms))
    except Exception as error:  # a peer may fail in any way; its row says how
        table.rows.append(Row(what, shape, who, note=failure(error)))
        return
    median, p20, p80 = statistics.median(found), found[len(found) // 5], found[len(found) - 1 - len(found) // 5]
    row = Row(what, shape, who, median, p20, p80, peak, wall_ms=wall)
    verdict = verdict_of(row, table.rows) if DEVICE == "cuda" else None  # toy sizes on a CPU say nothing
    table.rows.append(replace(row, note=str(verdict or "")))
    print(f"{what:28} {shape:28} {who:45} {median:9.3f} ms, wall {wall:9.3f} {verdict or ''}", flush=True)
    table.save()


def failure(error: Exception) -> str:
    """One line; a peer that is not installed is absent, whatever else is wrong failed."""
    how = "absent" if isinstance(error, ImportError) else f"failed: {type(error).__name__}"
    return f"{how}: {error}".split("\n")[0][:160].replace("|", "/")


def make_logits(num_rows: int, vocab: int, peaked: bool) -> Logits:
    """Gaussian of standard deviation 3; peaked: one logit 20 above, an entropy well below a nat."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    logits = torch.empty(num_rows, vocab, dtype=torch.bfloat16, device=DEVICE).normal_(0, 3, generator=generator)
    targets = torch.randint(0, vocab, (num_rows,), device=DEVICE, generator=generator)
    if peaked:
        logits[torch.arange(num_rows, device=DEVICE), targets] = 20.0
    return Logits(logits, targets, torch.randn(num_rows, device=DEVICE, generator=generator))


def make_linear(num_rows: int, width: int, vocab: int) -> Linear:
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.empty(num_rows, width, dtype=torch.bfloat16, device=DEVICE).normal_(generator=generator)
    weight = torch.empty(vocab, width, dtype=torch.bfloat16, device=DEVICE)
    weight.normal_(0, 3 / width**0.5, generator=generator)
    targets = torch.randint(0, vocab, (num_rows,), device=DEVICE, generator=generator)
    coefficients = torch.randn(num_rows, device=DEVICE, generator=generator)
    return Linear(hidden.requires_grad_(), weight.requires_grad_(), targets, coefficients)


@functools.cache
def check() -> None:
    """Both operations at least half as exact as eager, against fp64; stops the run otherwise."""
    data = make_logits(64, 32003, peaked=False)
    wide = replace(data, logits=data.logits.double(), coefficients=data.coefficients.double())
    fresh = replace(data, logits=data.logits.clone())
    compare(contestants.logits_ours(fresh), contestants.logits_eager(data), exact_logits(wide))
    small = make_linear(300, 256, 8191)
    wide_inputs = [x.detach().double().requires_grad_() for x in (small.hidden, small.weight)]
    logprobs = torch.log_softmax(wide_inputs[0] @ wide_inputs[1].t(), -1)
    loss = -(small.coefficients.double() * logprobs.gather(-1, small.targets.unsqueeze(-1)).squeeze(-1)).sum()
    exact = torch.autograd.grad(loss, wide_inputs)
    compare(contestants.linear_ours(small), contestants.linear_eager(small), exact)
    print("correct: gradients of both operations against fp64", flush=True)


def exact_logits(data: Logits):
    leaf = data.logits.requires_grad_()
    logprobs = torch.log_softmax(leaf, -1).gather(-1, data.targets.unsqueeze(-1)).squeeze(-1)
    return torch.autograd.grad(-(data.coefficients * logprobs).sum(), leaf)


def compare(ours, eager, exact) -> None:
    for mine, theirs, true in zip(ours, eager, exact, strict=True):
        error, allowed = (mine.double() - true).norm(), (theirs.double() - true).norm()
        if not error <= 2 * allowed + 1e-6 * true.norm():
            raise SystemExit(f"wrong gradient: error {error:.3e}, eager {allowed:.3e}")


def logits_rows(table: Table, clock: Clock, case: "Case") -> None:
    data, shape = make_logits(case.num_rows, case.vocab, case.is_peaked), case.shape
    measure(table, clock, "floor: read", shape, "amax", data.logits.amax)
    measure(table, clock, "floor: read + write", shape, "mul_", lambda: data.logits.mul_(1.0))
    for what, who_runs in (
        ("log-prob + entropy", contestants.score_contestants),
        ("loss + gradient", contestants.logits_contestants),
    ):
        for who, run in who_runs():
            if case.has_peers or who.startswith("fastrl"):
                measure(table, clock, what, shape, who, lambda run=run: run(data), "in_place")


def linear_rows(table: Table, clock: Clock, case: "Case") -> None:
    data, shape = make_linear(case.num_rows, case.width, case.vocab), case.shape
    hidden, weight = data.hidden.detach(), data.weight.detach()

    def three_products() -> None:
        logits = torch.mm(hidden, weight.t())
        torch.mm(logits, weight)
        torch.mm(logits.t(), hidden)

    measure(table, clock, "floor: three products", shape, "torch.mm", three_products)
    idle = torch.arange(case.num_rows, device=DEVICE) % 2 == 0
    half = replace(data, coefficients=torch.where(idle, 0.0, data.coefficients))
    ours = [("fastrl", data), (HALF_IDLE, half)]
    for who, rows in ours:
        measure(table, clock, "loss + dX + dW", shape, who, lambda rows=rows: contestants.linear_ours(rows), "beside")
    for who, run in contestants.linear_peers() if case.has_peers else ():
        measure(table, clock, "loss + dX + dW", shape, who, lambda run=run: run(data), "beside")


@dataclass(frozen=True)
class Case:
    """Rows of one shape: of logits (width 0), or of hidden states of that width times a head."""

    num_rows: int
    vocab: int
    width: int = 0
    is_peaked: bool = False
    has_peers: bool = False

    @property
    def shape(self) -> str:
        sizes = [self.num_rows, *[self.width] * bool(self.width), self.vocab]
        return " × ".join(map(str, sizes)) + " peaked" * self.is_peaked

    def run(self, table: Table, clock: Clock) -> None:
        (linear_rows if self.width else logits_rows)(table, clock, self)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


MAIN = [Case(8192, 151936, has_peers=True), Case(8192, 151936, 4096, has_peers=True)]
CASES = [
    *MAIN,
    Case(8192, 151936, is_peaked=True),
    Case(2048, 151936),
    Case(2048, 151936, 4096),
    *(Case(8192, vocab) for vocab in (32000, 128256, 256000)),
]
OTHERS = [
    *(Case(8192, vocab, is_peaked=True) for vocab in (32000, 128256, 256000)),
    Case(2048, 151936, is_peaked=True),
    *(Case(2048, vocab, is_peaked=peaked) for vocab in (32000, 128256, 256000) for peaked in (False, True)),
    Case(8192, 128256, 2048),
    Case(32768, 151936, 4096),
]
DRY_CASES = [Case(16, 512, has_peers=True), Case(16, 512, 32, has_peers=True)]


def launch_sweep(table: Table, clock: Clock, case: Case) -> None:
    """Other shapes of both row kernels, for the next version."""
    data, shape = make_logits(case.num_rows, case.vocab, peaked=False), case.shape
    sweeps = [{"BLOCK_V": block, "num_warps": warps} for block, warps in ((4096, 8), (8192, 16), (8192, 32))]
    clusters = [
        {"TILE_V": tile, "NUM_TILES": -(-case.vocab // tile), "num_warps": warps, "num_ctas": ctas}
        for tile, warps, ctas in ((16384, 8, 8), (32768, 16, 8), (16384, 16, 8), (65536, 32, 8), (16384, 16, 4))
    ]
    for options in sweeps + clusters:
        who, is_cluster = ", ".join(f"{name} {value}" for name, value in options.items()), "TILE_V" in options
        for what, run in (("log-prob + entropy", contestants.score_ours), ("loss + gradient", contestants.logits_ours)):
            run = contestants.launched(is_cluster, run, options)
            measure(table, clock, f"shape: {what}", shape, who, lambda run=run: run(data))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    is_dry = DEVICE != "cuda"
    clock, title = Clock(options.minutes), "GPU table" + (" (dry run on CPU)" if is_dry else "")
    table = Table(title, " ".join(sys.argv), options.out, "gpu_dry_run" if is_dry else "gpu")
    check()
    for case in DRY_CASES if is_dry else CASES:
        case.run(table, clock)
    if not is_dry:
        launch_sweep(table, clock, MAIN[0])
        for case in OTHERS:
            case.run(table, clock)
    table.save()
    print(table.markdown())


if __name__ == "__main__":
    main()
