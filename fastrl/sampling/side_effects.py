"""What a vLLM engine does to its process, undone: generators, threads, environment, and the thread's CUDA stream.

torch.distributed stays initialised until the engine closes. vLLM goes on noting which stream is current (it replaces
torch.cuda.set_stream): its graphs are captured and replayed on one of its own.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class EngineStream:
    """The CUDA stream that an engine works on, apart from the trainer's; nothing without CUDA.

    Building one makes vLLM's stream the thread's current one for good: the trainer's kernels would run there, too.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def building(self) -> Iterator[None]:
        """The stream that is current at the end is the engine's; the one before is the thread's again."""
        if not torch.cuda.is_available():
            yield
            return
        before, fresh = torch.cuda.current_stream(), torch.cuda.Stream()
        fresh.wait_stream(before)
        torch.cuda.set_stream(fresh)  # a later engine would capture its graphs on the default stream, which cannot be
        try:
            yield
            self._stream = torch.cuda.current_stream()
        finally:
            before.wait_stream(torch.cuda.current_stream())
            torch.cuda.set_stream(before)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside, the engine's stream is current; each side waits for what the other has queued."""
        if self._stream is None:
            yield
            return
        before = torch.cuda.current_stream()
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            yield
        before.wait_stream(self._stream)


@contextmanager
def undone_side_effects() -> Iterator[None]:
    """Building an engine reseeds every global generator, disables torch.set_num_threads and sets LD_PRELOAD."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    environment = dict(os.environ)
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(num_threads)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)
        for name in {n for n in os.environ if not n.startswith("VLLM_")} - environment.keys():
            del os.environ[name]
        os.environ.update({n: v for n, v in environment.items() if not n.startswith("VLLM_")})
