"""Checkpoints on disk: complete or not there, damage recognised, only the wanted ones kept; one process here."""

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fastrl.records import checkpoint_writer, checkpoints
from fastrl.records.checkpoint_writer import CheckpointWriter
from fastrl.records.model_export import ModelExport

FILES = ["model.safetensors", "trainer/shard-00001-model-00001-of-00001.safetensors", "state.json", "manifest.json"]


@pytest.fixture
def export(countdown_folder) -> ModelExport:
    model = AutoModelForCausalLM.from_pretrained(countdown_folder)
    return ModelExport(model, AutoTokenizer.from_pretrained(countdown_folder))


@pytest.fixture
def writer(tmp_path, export) -> Iterator[CheckpointWriter]:
    writer = CheckpointWriter(tmp_path, 9, export)
    yield writer
    writer.close()


def save(writer: CheckpointWriter, step: int, **options) -> Path:
    writer.save(step, {"exp_avg.a": torch.arange(6.0).view(2, 3) + step}, {"position": step * 10}, **options)
    writer.wait()
    return writer.folder / f"step-{step:06d}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_of_every_kind_of_tensor(writer, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "FILE_BYTES", 50)  # several files
    tensors = {
        "exp_avg.a": torch.randn(5, 3),
        "step.a": torch.tensor(3.0),
        "codes.a": torch.randint(256, (7,), dtype=torch.uint8),
        "halves": torch.randn(2, 2).bfloat16(),
        "eighths": torch.randn(4).to(torch.float8_e4m3fn),
        "none": torch.empty(0, 4),
        "count": torch.tensor(2**40),
        "part": torch.arange(100.0).view(10, 10)[2:5, ::2],
    }
    writer.save(7, tensors, {"position": 70})
    writer.wait()
    path = tmp_path / "step-000007"
    loaded = checkpoints.load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and loaded[name].shape == value.shape
        assert torch.equal(loaded[name].double(), value.double())
    assert checkpoints.load_state(path) == {"step": 7, "position": 70}
    assert checkpoints.defect(path) is None
    assert len(list((path / "trainer").iterdir())) > 2
    files = {p.name for p in path.rglob("*") if p.is_file()}
    assert {Path(name).suffix for name in files} == {".safetensors", ".json"}


def test_the_model_loads_as_it_was_at_the_save(writer, export, tmp_path):
    """The writing thread does not begin until weights, generation config, tensors and state have changed."""
    own = export.model.generation_config
    expected = {name: value.clone() for name, value in export.model.state_dict().items()}
    go_on = threading.Event()
    writer._thread.submit(go_on.wait, 60)
    tensors, state = {"exp_avg.a": torch.ones(4)}, {"position": 1}
    writer.save(1, tensors, state)
    with torch.no_grad():
        for tensor in (*export.model.parameters(), *tensors.values()):
            tensor.zero_()
    state["position"] = 2
    export.model.generation_config = GenerationConfig(eos_token_id=[7, 8], max_length=99)  # as a sampler has it
    assert names(tmp_path) == []
    go_on.set()
    writer.wait()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "step-000001").state_dict()
    assert loaded.keys() == expected.keys() and all(loaded[name].equal(expected[name]) for name in expected)
    assert GenerationConfig.from_pretrained(tmp_path / "step-000001").to_diff_dict() == own.to_diff_dict()
    assert checkpoints.load_tensors(tmp_path / "step-000001")["exp_avg.a"].equal(torch.ones(4))
    assert checkpoints.load_state(tmp_path / "step-000001")["position"] == 1


def test_an_export_is_cast_and_says_so(export, tmp_path):
    half = ModelExport(export.model, export.tokenizer, torch.bfloat16)
    half.stage()
    half.write(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16 and export.model.dtype == torch.float32
    expected = export.model.state_dict()
    assert all(value.equal(expected[name].bfloat16()) for name, value in loaded.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == export.tokenizer.get_vocab()


def test_rng_is_restored(writer):
    path = save(writer, 1)
    expected = torch.rand(3)
    checkpoints.restore_rng(path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_seen_and_the_previous_checkpoint_taken(writer, tmp_path, name, damage):
    save(writer, 1)
    newest = save(writer, 2) / name
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


def test_no_sound_checkpoint_is_an_error_and_none_at_all_is_not(writer, tmp_path):
    assert checkpoints.latest_sound(tmp_path, print) is None
    (save(writer, 1) / "state.json").unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
            checkpoints.latest_sound(tmp_path, lambda text: None)


def test_the_best_checkpoint_is_the_last_resort(writer, tmp_path):
    (save(writer, 3, is_best=True) / "state.json").unlink()
    assert checkpoints.latest_sound(tmp_path, lambda text: None) == tmp_path / "best"


@contextmanager
def file_limit(num_bytes: int) -> Iterator[None]:
    """A limit on file size, as a stand-in for a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("num_bytes", [4_000, 40_000], ids=["trainer", "model"])
def test_a_failed_write_leaves_the_old_ones_alone(writer, tmp_path, num_bytes):
    save(writer, 1, is_best=True)
    with file_limit(num_bytes):
        writer.save(2, {"exp_avg.a": torch.ones(2)}, {}, is_best=True)
        with pytest.raises(OSError, match=r"checkpoint .*step-000002 could not be written: .*too large"):
            writer.wait()
    assert writer.step is None
    writer.wait()  # told once
    assert names(tmp_path) == ["best", "step-000001"]
    assert checkpoints.latest_sound(tmp_path, print) == tmp_path / "step-000001"
    save(writer, 2)
    assert checkpoints.defect(tmp_path / "step-000002") is None


def test_the_next_save_tells_that_the_last_one_failed(writer, tmp_path):
    with file_limit(4_000):
        writer.save(1, {"exp_avg.a": torch.ones(2)}, {})
        with pytest.raises(OSError, match=r"step-000001 could not be written"):
            writer.save(2, {"exp_avg.a": torch.ones(2)}, {})
    assert names(tmp_path) == []


def test_prune_keeps_the_newest_and_the_best(writer, tmp_path):
    writer.keep_last = 2
    (tmp_path / ".draft-step-000009").mkdir()
    for step in (1, 2, 3, 10):
        save(writer, step, is_best=step == 2)
    assert names(tmp_path) == ["best", "step-000003", "step-000010"]
    assert json.loads((tmp_path / "best" / "state.json").read_text())["step"] == 2
    assert checkpoints.defect(tmp_path / "best") is None


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from fastrl.records.checkpoint_writer import CheckpointWriter
from fastrl.records.model_export import ModelExport

folder = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[2])
random.seed(0)
for attempt in range(6):
    if pid := os.fork():
        while not (folder / "best").exists() or not list(folder.glob(f"step-{attempt:03d}???")):
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print("killed", flush=True)
        sys.stdin.readline()  # the test looks
    else:
        writer = CheckpointWriter(folder, 2, ModelExport(model, None))
        for step in range(1000 * attempt + 1, 1000 * attempt + 1000):
            writer.save(step, {"exp_avg.a": torch.full((1000,), step)}, {}, is_best=True)
        os._exit(0)
"""


def test_sigkill_at_any_instant_leaves_only_whole_checkpoints(countdown_folder, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(countdown_folder)]
    environment = os.environ | {"PYTHONSAFEPATH": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        num_killed, last = 0, 0
        while process.stdout.readline():
            num_killed += 1
            visible = [p for p in tmp_path.iterdir() if not p.name.startswith(".")]
            assert {p.name: checkpoints.defect(p) for p in visible} == dict.fromkeys(p.name for p in visible)
            newest = checkpoints.latest_sound(tmp_path, pytest.fail)
            step = checkpoints.load_state(newest)["step"]
            assert step > last and newest.name == f"step-{step:06d}"
            assert checkpoints.load_tensors(newest)["exp_avg.a"].eq(step).all()
            assert checkpoints.defect(tmp_path / "best") is None
            last = step
            process.stdin.write("\n")
            process.stdin.flush()
    assert num_killed == 6 and process.returncode == 0
