"""What a vLLM engine does to the process that it is built in, undone: random states, threads, streams, environment.

On CPU alone there is one change that goes the other way: vLLM is kept from packing linear weights away.
"""

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def own_stream() -> Iterator[None]:
    """Gives the thread its current CUDA stream back, behind whatever was put on another one meanwhile."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.current_stream()
    try:
        yield
    finally:
        before.wait_stream(torch.cuda.current_stream())
        torch.cuda.set_stream(before)


@contextmanager
def undone_side_effects() -> Iterator[None]:
    """Building an engine reseeds every global generator, disables torch.set_num_threads and sets LD_PRELOAD and the
    thread's CUDA stream.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    environment = dict(os.environ)
    try:
        with own_stream():
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


def _keep_weight(layer: nn.Module, remove_weight: bool = False) -> None:
    """In place of packing a layer's weight away: compute with the weight itself."""
    layer.cpu_linear = torch.nn.functional.linear


@contextmanager
def linear_weights_kept(tested_versions: Iterable[str]) -> Iterator[None]:
    """While a model loads on CPU: keep vLLM from packing linear weights into copies that nobody can reach."""
    import vllm.model_executor.layers.linear as linear
    import vllm.model_executor.layers.utils as utils
    import vllm.model_executor.layers.vocab_parallel_embedding as embedding

    name = "dispatch_cpu_unquantized_gemm"  # looked up in `utils`, or imported by name into the others: by version
    modules = [m for m in (utils, linear, embedding) if hasattr(m, name)]
    if utils not in modules:
        raise ValueError(f"this vLLM has no {name}: it moved; tested versions: {', '.join(tested_versions)}")
    originals = {module: getattr(module, name) for module in modules}
    for module in modules:
        setattr(module, name, _keep_weight)
    try:
        yield
    finally:
        for module, original in originals.items():
            setattr(module, name, original)
