"""The rows of the speedrun and their bars. Four calls share a quarter of an hour on a GPU, the best rows come first.

`DRY` replaces sizes for a run on a CPU through the same code.
"""

from dataclasses import dataclass, field
from typing import Any

from gpu_iteration import TINY
from gpu_table import CASES, Case

NUM_CALLS = 4


@dataclass(frozen=True)
class Bar:
    """quantity: tokens_per_s, mfu or peak_gib, at least `limit`, or at most. peer: `limit` is times the value of the
    fastest measured row, on the same card, whose name begins so."""

    quantity: str
    limit: float
    is_most: bool = False
    peer: str = ""


@dataclass(frozen=True)
class Row:
    """settings: of the benchmark of its kind. seconds: what it took or is guessed to take; with less it waits."""

    name: str
    kind: str
    call: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    bars: tuple[Bar, ...] = ()

    def sizes(self, is_dry: bool) -> dict[str, Any]:
        return self.settings | (DRY[self.kind] if is_dry else {})


DRY: dict[str, dict[str, Any]] = {
    "tests": {"files": ["test_statistics.py"]},
    "kernels": {"num_rows": 16, "vocab": 512},
    "train": {"shape": "tiny", "sequences": 8, "micro_batch": 4, "prompt": 16, "completion": 24},
    "iteration": TINY | {"sampler": "embedded", "iterations": 2, "is_dry": True},
}
TRL = "train-0.6b-trl"
BESIDE_TRL = (Bar("tokens_per_s", 2.2, peer=TRL), Bar("peak_gib", 1.0, is_most=True, peer=TRL))
TRAIN = (Bar("tokens_per_s", 90_000), Bar("mfu", 0.33), *BESIDE_TRL)
LONG = (Bar("tokens_per_s", 25_000), Bar("peak_gib", 15.0, is_most=True))
SMALL, LARGE = {"shape": "qwen3-0.6b"}, {"shape": "qwen3-1.7b"}
COMPILED_8 = SMALL | {"who": "fastrl", "backbone": "compiled", "micro_batch": 8}  # equal micro-batches
SEQUENCE_16K = {"sequences": 8, "micro_batch": 1, "prompt": 256, "completion": 16128, "recompute": True}
EVERY_PARAMETER_7B = {
    "shape": "qwen2.5-7b",
    "prompts": 16,
    "micro_batch": 16,
    "kv_gib": 8.0,
    "recompute": True,
    "low_memory": True,
}


def kernel_row(case: Case) -> Row:
    settings = {"num_rows": case.num_rows, "vocab": case.vocab, "width": case.width, "is_peaked": case.is_peaked}
    seconds = 18 if case.has_peers else 4
    return Row(kernel_name(case.shape), "kernels", 1, seconds, settings | {"has_peers": case.has_peers})


def kernel_name(shape: str) -> str:
    return "kernels-" + shape.replace(" × ", "x").replace(" ", "-")


ROWS = [
    Row("gpu-tests", "tests", 1, 90, {"files": ["test_triton_gpu.py", "test_triton_launch.py"]}),
    *map(kernel_row, CASES),
    Row("iteration-0.6b", "iteration", 2, 100, SMALL),
    Row("vllm-contract", "tests", 2, 60, {"files": ["test_vllm_contract.py"]}),
    Row("train-0.6b-compiled", "train", 3, 45, SMALL | {"who": "fastrl", "backbone": "compiled"}, TRAIN),
    Row("train-0.6b-eager", "train", 3, 30, SMALL | {"who": "fastrl", "backbone": "eager"}, TRAIN),
    Row(f"{TRL}-8", "train", 3, 43, SMALL | {"who": "trl", "micro_batch": 8}),
    Row("train-0.6b-16k", "train", 3, 80, SMALL | SEQUENCE_16K | {"who": "fastrl", "backbone": "compiled"}, LONG),
    Row("iteration-7b", "iteration", 3, 150, EVERY_PARAMETER_7B, (Bar("mfu", 0.45),)),
    Row("train-0.6b-compiled-8", "train", 4, 45, COMPILED_8, (Bar("peak_gib", 1.0, is_most=True, peer=f"{TRL}-8"),)),
    Row(f"{TRL}-8-liger", "train", 4, 45, SMALL | {"who": "trl", "micro_batch": 8, "backbone": "liger"}),
    Row(f"{TRL}-16", "train", 4, 45, SMALL | {"who": "trl", "micro_batch": 16}),
    Row("iteration-0.6b-tail", "iteration", 4, 100, SMALL | {"lengths": "varied"}),
    Row("iteration-1.7b", "iteration", 4, 130, LARGE | {"micro_batch": 8}),
    Row("iteration-1.7b-tail", "iteration", 4, 130, LARGE | {"micro_batch": 8, "lengths": "varied"}),
    Row("iteration-0.6b-trl", "iteration", 4, 130, SMALL | {"who": "trl"}),
    Row("iteration-0.6b-tail-trl", "iteration", 4, 130, SMALL | {"who": "trl", "lengths": "varied"}),
    Row("iteration-1.7b-trl", "iteration", 4, 160, LARGE | {"who": "trl"}),
    Row("iteration-1.7b-tail-trl", "iteration", 4, 160, LARGE | {"who": "trl", "lengths": "varied"}),
]
BY_NAME = {row.name: row for row in ROWS}
