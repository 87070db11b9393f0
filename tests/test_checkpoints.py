"""Checkpoints on disk: complete or not there, damage recognised, only the wanted ones kept."""

import json
from pathlib import Path

import pytest
import torch

from fastrl.records import checkpoints


def write_model(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"weights" * 100)


def save(folder: Path, step: int) -> Path:
    tensors = {"exp_avg.a": torch.arange(6.0).view(2, 3)} | checkpoints.rng_tensors()
    return checkpoints.save(folder, step, save_model=write_model, tensors=tensors, state={"position": step * 10})


def test_round_trip(tmp_path):
    path = save(tmp_path, 7)
    tensors, state = checkpoints.load(path)
    assert path.name == "step-000007" and state == {"step": 7, "position": 70}
    assert torch.equal(tensors["exp_avg.a"], torch.arange(6.0).view(2, 3))
    assert checkpoints.defect(path) is None


def test_rng_is_restored(tmp_path):
    path = save(tmp_path, 1)
    expected = torch.rand(3)
    checkpoints.restore_rng(checkpoints.load(path)[0])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["model.safetensors", "trainer/optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_seen_and_the_previous_checkpoint_taken(tmp_path, name, damage):
    save(tmp_path, 1)
    newest = save(tmp_path, 2) / name
    data = bytearray(newest.read_bytes())
    if damage == "delete":
        newest.unlink()
    else:
        data[len(data) // 2] ^= 0x10
        newest.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    said = []
    chosen = checkpoints.latest_sound(tmp_path, said.append)
    assert chosen == tmp_path / "step-000001"
    assert len(said) == 1 and "step-000002" in said[0] and "previous" in said[0]


def test_no_sound_checkpoint(tmp_path):
    (save(tmp_path, 1) / "state.json").unlink()
    assert checkpoints.latest_sound(tmp_path, lambda text: None) is None


def test_a_failed_write_leaves_the_old_ones_alone(tmp_path):
    save(tmp_path, 1)

    def broken(path: Path) -> None:
        write_model(path)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(tmp_path, 2, save_model=broken, tensors={}, state={})
    assert checkpoints.latest_sound(tmp_path, lambda text: None) == tmp_path / "step-000001"
    checkpoints.prune(tmp_path, keep_last=5)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 10):
        path = save(tmp_path, step)
        if step == 2:
            checkpoints.keep_as_best(path)
    checkpoints.prune(tmp_path, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "step-000003", "step-000010"]
    assert json.loads((tmp_path / "best" / "state.json").read_text())["step"] == 2
    assert checkpoints.defect(tmp_path / "best") is None
