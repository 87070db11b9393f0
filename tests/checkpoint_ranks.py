"""One of two processes of tests/test_checkpoint_ranks.py: FSDP2 shards and AdamW, gloo.

torchrun --nproc-per-node 2 tests/checkpoint_ranks.py CHECKPOINT FOLDER
CHECKPOINT was written by one process; FOLDER gets one of two, and `expected.safetensors`, what it must hold.
"""

import os
import resource
import sys
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from fastrl.config.schema import OptimizerConfig
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.process.ranks import TIMEOUT_S, Ranks
from fastrl.records import checkpoints
from fastrl.records.checkpoint_writer import CheckpointWriter
from fastrl.records.model_export import ModelExport

RANKS = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


class Trained:
    """A sharded model and its optimizer, as a run has them."""

    def __init__(self, folder: str):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for layer in self.model.model.layers:
            fully_shard(layer)
        fully_shard(self.model)
        self.optimizer = MasterOptimizer(self.model, OptimizerConfig(lr=1e-2), num_steps=100)

    def train(self, num_steps: int) -> None:
        for _ in range(num_steps):
            ids = torch.randint(2, 500, (2, 9))
            self.model(input_ids=ids, labels=ids).loss.backward()
            _, has_moved = self.optimizer.step()
            assert has_moved

    def tensors(self) -> dict[str, Tensor]:
        return self.optimizer.state_tensors()

    def restore(self, checkpoint: Path) -> None:
        self.optimizer.load_state_tensors(checkpoints.load_tensors(checkpoint, self.optimizer.empty_state))
        checkpoints.restore_rng(checkpoint, RANKS)

    def whole(self) -> dict[str, Tensor]:
        """Copies that no later step changes; the same on every rank."""
        return {k: (v.full_tensor() if isinstance(v, DTensor) else v).clone() for k, v in self.tensors().items()}


class HeldExport(ModelExport):
    """Rank 0 is kept in the middle of writing until `go_on` is set."""

    go_on = threading.Event()

    def write(self, folder: Path) -> None:
        assert self.go_on.wait(60)
        super().write(folder)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    assert all(found[name].equal(expected[name]) for name in expected)


def random_numbers() -> Tensor:
    """Of all ranks; the generators stay where they were."""
    with torch.random.fork_rng(devices=[]):
        numbers = [torch.empty(4) for _ in range(RANKS.world_size)]
        dist.all_gather(numbers, torch.rand(4))
    return torch.stack(numbers)


def resume_from_one(trained: Trained, checkpoint: Path) -> None:
    """1 → 2 ranks: rank 0 has its generator back, rank 1 keeps its fresh one."""
    fresh = random_numbers()
    trained.restore(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")  # float32 weights of one process are their own masters
    masters = {f"master.{name}": value for name, value in weights.items()}
    assert_equal(trained.whole(), checkpoints.load_tensors(checkpoint) | masters)
    assert all(isinstance(v, DTensor) for k, v in trained.tensors().items() if not k.startswith("step."))
    assert random_numbers()[1].equal(fresh[1]) and not random_numbers()[0].equal(fresh[0])


def save_while_training(trained: Trained, export: HeldExport, writer: CheckpointWriter) -> None:
    """The thread is between its collectives while the main one runs those of six steps, then a second save waits."""
    trained.train(1)
    expected, numbers = trained.whole(), random_numbers()
    writer.save(1, trained.tensors(), {"position": 5}, is_best=True)
    trained.train(6)
    assert not (writer.folder / "step-000001").exists()
    dist.barrier()
    HeldExport.go_on.set()
    later = trained.whole()
    writer.save(2, trained.tensors(), {})
    assert (writer.folder / "step-000001").exists()
    writer.wait()
    if RANKS.rank == 0:
        save_file({k: v.contiguous() for k, v in expected.items()}, writer.folder / "expected.safetensors")
    trained.train(2)
    for step, values in ((2, later), (1, expected)):
        trained.restore(checkpoints.final_path(writer.folder, step))
        assert_equal(trained.whole(), values)
    assert random_numbers().equal(numbers)
    assert_equal(checkpoints.load_tensors(writer.folder / "step-000001"), expected)


def fail_on_one_rank(trained: Trained, writer: CheckpointWriter) -> None:
    """Rank 1 cannot write, both are told, what was there stays."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if RANKS.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    writer.save(3, trained.tensors(), {})
    try:
        writer.wait()
        raise AssertionError("the failed write was not noticed")
    except OSError as error:
        assert "step-000003 could not be written" in str(error) and "too large" in str(error), error
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def latest(folder: Path) -> None:
    """Rank 0 looks and says, all have its answer: the newest is damaged."""
    if RANKS.rank == 0:
        (folder / "step-000002" / "trainer" / "shard-00002-model-00001-of-00001.safetensors").unlink()
    dist.barrier()
    said = []
    assert checkpoints.latest_sound(folder, said.append, RANKS) == folder / "step-000001"
    assert len(said) == (RANKS.rank == 0)


def main(checkpoint: str, folder: str) -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(RANKS.rank)
    trained = Trained(checkpoint)
    resume_from_one(trained, Path(checkpoint))
    export = HeldExport(trained.model, None, torch.bfloat16, RANKS)
    writer = CheckpointWriter(Path(folder), 2, export, RANKS)
    assert writer.ranks.group._get_backend(torch.device("cpu")).options._timeout.total_seconds() == TIMEOUT_S
    save_while_training(trained, export, writer)
    fail_on_one_rank(trained, writer)
    latest(Path(folder))
    writer.close()
    print(f"rank {RANKS.rank}: all good\n", end="", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
