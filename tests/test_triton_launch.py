"""Which Triton row kernel is launched, in which shape, and the reason that is given."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from fastrl.kernels import Head, TokenLoss, TokenRows, choose, chunks, triton_launch, triton_rows
from fastrl.kernels.dispatch import forced_backend
from fastrl.kernels.triton_launch import MAX_TILES, choose_launch, cluster_options

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh_choices():
    for function in (triton_launch.cluster_problem, choose_launch):
        function.cache_clear()
    yield
    for function in (triton_launch.cluster_problem, choose_launch):
        function.cache_clear()


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("vocab", [1, 23, 255, 256, 257, 507, 10007, 32000, 128256, 151936, 163840])
def test_tiles_cover_the_row_and_only_the_last_reaches_beyond_it(vocab, itemsize) -> None:
    options = cluster_options(vocab, itemsize, MAX_TILES, 8)
    tile, num_tiles = options["TILE_V"], options["NUM_TILES"]
    assert tile * (num_tiles - 1) < vocab <= tile * num_tiles
    assert tile * itemsize == 16 * 32 * options["num_warps"] * options["num_ctas"]
    assert num_tiles <= MAX_TILES


def test_the_reason_says_which_kernel_and_why(monkeypatch) -> None:
    qwen = choose_launch(151936, 2, CPU, with_gradient=True)
    assert (qwen.is_cluster, qwen.reason) == (True, "one read: 8 CTAs hold a row in registers")
    for launch, reason in (
        (choose_launch(151936, 2, CPU, with_gradient=False), "one sweep"),
        (choose_launch(151936, 2, CPU, with_gradient=True, has_tail=True, has_bias=True), "a head's bias"),
        (choose_launch(256000, 4, CPU, with_gradient=True), "registers of a cluster do not hold a row"),
    ):
        assert not launch.is_cluster and reason in launch.reason
    with forced_backend("triton"):
        assert qwen.reason in choose("linear_policy_loss", "cpu", torch.bfloat16, vocab=151936).reason


def test_older_software_and_hardware_sweep_or_hold_a_row_in_one_cta(monkeypatch) -> None:
    monkeypatch.setattr(triton_launch.triton, "__version__", "3.6.0")
    large = choose_launch(151936, 2, CPU, with_gradient=True)
    assert (large.is_cluster, large.reason) == (False, "two sweeps: clusters need Triton 3.9, this is 3.6.0")
    assert large.options == {"BLOCK_V": 8192, "num_warps": 32}
    small = choose_launch(32000, 2, CPU, with_gradient=True)
    assert small.options == {"TILE_V": 4096, "NUM_TILES": 8, "num_warps": 16, "num_ctas": 1}
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert triton_launch.cluster_problem(torch.device("cuda", 7)) == "clusters need sm_90, this is sm_80"


def test_a_kernel_that_no_gpu_has_run_is_no_gpus_default(monkeypatch) -> None:
    hopper = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    kept = choose_launch(151936, 2, hopper, with_gradient=True)
    assert not kept.is_cluster and "has not run on a GPU so far" in kept.reason
    choose_launch.cache_clear()
    monkeypatch.setattr(triton_launch, "HAS_RUN_ON_A_GPU", True)
    assert choose_launch(151936, 2, hopper, with_gradient=True).is_cluster


class Launches(TorchDispatchMode):
    """Counts what a GPU would be asked for: operations that make no view, and row kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def __getitem__(self, grid):
        """In the place of a row kernel."""
        return lambda *args, **kwargs: self.counts.update(["row kernel"])


def launches(monkeypatch, num_chunks: int) -> Counter:
    """Of a loss with dX and dW; on a GPU where there is one."""
    counter, device = Launches(), "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(chunks, "chunk_rows", lambda *_, **__: 4)
    monkeypatch.setattr(triton_rows, "_first_impossible", lambda *_: -1)
    for name in ("_policy_rows_kernel", "_policy_cluster_kernel"):
        monkeypatch.setattr(triton_rows, name, counter)
    hidden, weight = torch.randn(4 * num_chunks, 8, device=device), torch.randn(32, 8, device=device)
    rows = TokenRows(torch.arange(len(hidden), device=device), torch.ones(len(hidden), device=device), 0.5)
    with counter:
        wanted, loss = chunks.Wanted(True, True), TokenLoss(entropy_coef=0.1)
        chunks.linear_policy_loss(triton_rows, hidden, Head(weight), rows, loss, wanted)
    return counter.counts


def test_a_chunk_costs_its_products_and_its_row_kernel_and_nothing_else(monkeypatch) -> None:
    """Targets are looked at once a batch."""
    few, many = launches(monkeypatch, 2), launches(monkeypatch, 7)
    assert many - few == Counter({"mm": 10, "addmm_": 5, "row kernel": 5})
