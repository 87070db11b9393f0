"""Wall time of a step's phases. The watchdog hears of each."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastrl.process.watchdog import alive


class Stopwatch:
    """`with watch("generate"): …` adds the seconds of the block to `times["generate"]`, the GPU's work included."""

    def __init__(self, device: torch.device):
        self.device = device
        self.times: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        alive(phase)
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.times[phase] = self.times.get(phase, 0.0) + time.perf_counter() - start
