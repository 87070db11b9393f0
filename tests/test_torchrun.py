"""`fastrl train` under torchrun: the run of one process, resumed on other numbers of ranks, interrupted, killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_training import NUM_STEPS, config_of
from torchrun import launch, torchrun, torchrun_nodes

from fastrl.config.files import to_toml
from fastrl.records.jsonl import read_jsonl

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def configured(tmp_path_factory, countdown_folder):
    """configured(name): a config file for a run folder of that name."""
    root = tmp_path_factory.mktemp("torchrun")

    def make(name: str) -> Path:
        path = root / f"{name}.toml"
        path.write_text(to_toml(config_of(root / name, countdown_folder)))
        return path

    return make


def train(num_ranks: int, config: Path, *options: str) -> str:
    process = torchrun(num_ranks, ["fastrl", "train", str(config), *options])
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def weights(config: Path, step: int = NUM_STEPS) -> dict:
    return load_file(config.with_suffix("") / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def metrics(config: Path) -> list[dict]:
    return read_jsonl(config.with_suffix("") / "metrics.jsonl")


def assert_close(ours: dict, theirs: dict, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    worst = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
    assert worst < tolerance, worst


def test_two_ranks_make_the_run_of_one_and_resume_on_either(configured):
    alone, two = configured("alone"), configured("two")
    train(1, alone)
    said = train(2, two, "--run.num-steps", "2")
    assert said.count("step 1/2") == said.count("run folder:") == 1, said  # one rank talks
    assert "FSDP2: float32 shards on 2 ranks" in said
    assert_close(weights(two, 2), weights(alone, 2), 1e-5)
    other = configured("other")  # the same first half, then on one process
    shutil.copytree(two.with_suffix(""), other.with_suffix(""))
    train(2, two, "--resume")
    assert_close(weights(two), weights(alone), 2e-5)
    for ours, theirs in zip(metrics(two), metrics(alone), strict=True):
        assert ours.keys() - theirs.keys() <= {"time/exchange_s"}
        for key in ("step", "reward/mean", "eval/pass_at_1", "update/tokens", "rollouts/num_positive"):
            assert ours.get(key) == theirs.get(key), key
    train(1, other, "--resume")
    assert_close(weights(other), weights(alone), 2e-5)


@pytest.mark.slow
def test_two_machines_make_the_run_of_one(configured):
    """Two torchruns with --nnodes 2 that meet at a port, as on two machines with one file system."""
    alone, apart = configured("one-machine"), configured("two-machines")
    train(1, alone)
    outputs = torchrun_nodes(2, ["fastrl", "train", str(apart)])
    assert sum(output.count(f"step {NUM_STEPS}/{NUM_STEPS}") for output in outputs) == 1, outputs
    assert any("FSDP2: float32 shards on 2 ranks" in output for output in outputs)
    assert_close(weights(apart), weights(alone), 2e-5)


@pytest.mark.vllm
def test_two_ranks_with_an_engine_each_make_the_run_of_one(configured):
    """gather against alias: the same seeds draw the same tokens, the bit checksums of every step are silent."""
    model = str(Path(__file__).parent.parent / "models" / "countdown")  # heads of a size that vLLM takes
    options = ("--model.path", model, "--sampler.kind", "vllm", "--evaluation.every", "0", "--run.num-steps", "3")
    options += ("--optimizer.eps", "1e-6")  # gradients that are rounding noise make no step
    alone, two = configured("vllm-alone"), configured("vllm-two")
    train(1, alone, *options)
    said = train(2, two, *options)
    assert "sampler weights: gather, shards of 2 processes go straight into vLLM's tensors" in said
    assert_close(weights(two, 3), weights(alone, 3), 2e-5)
    for ours, theirs in zip(metrics(two), metrics(alone), strict=True):
        assert ours["publish/bytes"] > 0 == theirs["publish/bytes"]
        assert ours.get("reward/mean") == theirs.get("reward/mean")


def test_a_signal_stops_all_ranks_after_the_same_step(configured):
    config = configured("stopped")
    with launch(2, ["fastrl", "train", str(config), "--run.num-steps", "100000", "--evaluation.every", "0"]) as process:
        wait_for_step(config, 2)
        process.send_signal(signal.SIGTERM)  # torchrun hands it to its workers
        said = process.communicate(timeout=100)[0]
    assert process.returncode != 0
    last = metrics(config)[-1]["step"]
    state = json.loads(newest_checkpoint(config).joinpath("state.json").read_text())
    assert state["step"] == last, said
    train(2, config, "--resume", "--evaluation.every", "0", "--run.num-steps", str(last + 1))
    assert metrics(config)[-1]["step"] == last + 1


def test_a_killed_rank_ends_the_others_soon_and_is_named(configured):
    config = configured("killed")
    with launch(2, ["fastrl", "train", str(config), "--run.num-steps", "100000", "--evaluation.every", "0"]) as process:
        wait_for_step(config, 3)
        os.kill(worker_of(process, rank=1), signal.SIGKILL)
        killed = time.monotonic()
        said = process.communicate(timeout=100)[0]
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    assert re.search(r"rank\s*:\s*1\b.*?exitcode\s*:\s*-9", said, re.DOTALL), said
    sound = json.loads(newest_checkpoint(config).joinpath("state.json").read_text())["step"]
    train(1, config, "--resume", "--evaluation.every", "0", "--run.num-steps", str(sound + 1))


def test_bad_input_is_said_once(configured):
    process = torchrun(2, ["fastrl", "train", str(configured("bad")), "--task.train", "missing.jsonl"])
    assert process.returncode != 0
    said = process.stdout + process.stderr
    assert said.count("error:") == 1, said


def test_a_run_that_diverges_says_so_once(configured, tmp_path, monkeypatch):
    (tmp_path / "enormous.py").write_text("def reward(prompt, completion, **row):\n    return 1e30 * len(completion)\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "3+4="}\n' * 8)
    monkeypatch.chdir(tmp_path)
    task = ("--task.name", "enormous:reward", "--task.train", "rows.jsonl", "--evaluation.every", "0")
    limits = ("--run.max-nonfinite-steps", "1", "--algorithm.objective", "dr-grpo", "--evaluation.at-end", "False")
    process = torchrun(2, ["fastrl", "train", str(configured("diverged")), *task, *limits])
    said = process.stdout + process.stderr
    assert process.returncode != 0 and said.count("error: no gradient was finite") == 1, said


def wait_for_step(config: Path, step: int) -> None:
    path = config.with_suffix("") / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= step:
            return
        time.sleep(0.1)
    raise AssertionError(f"no step {step}")


def newest_checkpoint(config: Path) -> Path:
    return sorted((config.with_suffix("") / "checkpoints").glob("step-*"))[-1]


def worker_of(process: subprocess.Popen, rank: int) -> int:
    """Process id of a rank."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    raise AssertionError(f"no rank {rank}")
