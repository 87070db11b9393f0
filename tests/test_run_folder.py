"""A run folder has one owner and holds one run; rollouts have a limit."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_training import assert_bitwise_equal, config_of, weights

from fastrl.cli import main
from fastrl.config.files import to_toml
from fastrl.config.schema import EvalConfig, EvaluationConfig, ModelConfig, WarmupConfig
from fastrl.evaluation.evaluate import evaluate
from fastrl.records.durable import replacing, write_file
from fastrl.records.jsonl import read_jsonl
from fastrl.records.lock import lock_beside
from fastrl.records.rollout_files import RolloutFiles
from fastrl.records.run_folder import RunFolder
from fastrl.rollouts import Rollouts, text_column
from fastrl.run.training import train
from fastrl.tasks import Problem
from fastrl.warmup import warmup


def test_a_second_start_is_refused_until_the_first_is_dead(tmp_path, countdown_folder, capsys):
    """The first is killed while its verifier workers live: what they inherited must not hold the folder."""
    config = config_of(tmp_path / "run", countdown_folder, num_steps=30)
    config = replace(config, evaluation=EvaluationConfig(at_end=False))
    (tmp_path / "config.toml").write_text(to_toml(config))
    command = [sys.executable, "-m", "fastrl.cli", "train", str(tmp_path / "config.toml")]
    with subprocess.Popen(command, env=os.environ | {"PYTHONSAFEPATH": "1"}, stdout=subprocess.DEVNULL) as first:
        while not (tmp_path / "run" / "rollouts" / "step-000001.jsonl.gz").exists():
            assert first.poll() is None
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)  # it stays alive for as long as this takes
        for arguments in ([], ["--resume"], ["--resume", "--optimizer.lr", "0.5"]):
            assert main(["train", str(tmp_path / "config.toml"), *arguments]) == 2
            error = capsys.readouterr().err
            assert f"run' is in use by process {first.pid} on " in error and error.count("\n") == 1
        first.kill()
        first.wait()
        train(config, resume=True)
    undisturbed = replace(config, run=replace(config.run, folder=str(tmp_path / "undisturbed")))
    assert_bitwise_equal(weights(tmp_path / "run", 30), weights(train(undisturbed), 30))
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")] == list(range(1, 31))
    assert not (tmp_path / "run" / ".lock").exists()


def test_two_first_starts_make_one_run(tmp_path):
    one, two = (RunFolder(config_of(tmp_path / "run", "model"), is_resumed=False) for _ in range(2))
    assert not (tmp_path / "run").exists()
    one.create()
    with pytest.raises(ValueError, match=rf"run' is in use by process {os.getpid()} on "):
        two.create()
    one.close()
    with pytest.raises(ValueError, match="another process has begun a run"):
        two.create()


def test_a_rank_may_look_at_the_folder_while_another_claims_it(tmp_path):
    config = config_of(tmp_path / "run", "model")
    first = RunFolder(config, is_resumed=False)
    first.create()
    first.close()
    is_over = threading.Event()

    def claim_and_let_go() -> None:
        while not is_over.is_set():
            RunFolder(config, is_resumed=True).close()

    with ThreadPoolExecutor() as threads:
        claims = threads.submit(claim_and_let_go)
        try:
            for _ in range(300):
                RunFolder(config, is_resumed=True, is_main=False)
        finally:
            is_over.set()
        claims.result()


def test_evaluations_and_warm_starts_have_one_owner_too(tmp_path, countdown_folder):
    evaluation = EvalConfig(model=ModelConfig(str(countdown_folder)), output=str(tmp_path / "eval.json"))
    start = WarmupConfig(output=str(tmp_path / "warm"))
    for run, path in ((lambda: evaluate(evaluation), evaluation.output), (lambda: warmup(start), start.output)):
        with (
            lock_beside(Path(path), "output"),
            pytest.raises(ValueError, match=rf"output = '{path}' is in use by process {os.getpid()} on "),
        ):
            run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["/", "~", "others"])
def test_a_folder_that_is_not_a_runs_is_refused_and_left_alone(folder, tmp_path, monkeypatch, countdown_folder, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").write_text("…")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--model.path", str(countdown_folder), "--run.folder", folder]
    for extra in ([], ["--resume"]):
        assert main(["train", *arguments, *extra]) == 2
        error = capsys.readouterr().err
        assert "run.folder = " in error and error.count("\n") == 1
        assert "holds other things (thesis.tex)" in error or "a folder of its own is needed" in error
    assert main(["warmup", "--output", folder]) == 2
    assert "output = " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_start_that_died_at_once_does_not_bar_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 1 on another machine")
    (tmp_path / "run" / ".config.toml.draft").write_text("[mod")
    folder = RunFolder(config_of(tmp_path / "run", "model"), is_resumed=False)
    folder.create()
    folder.close()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.toml"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_file(tmp_path / "a" / "file", "old")
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "a" / "file") as draft:
        draft.write_text("half")
        raise OSError("full")
    assert [(p.name, p.read_text()) for p in (tmp_path / "a").iterdir()] == [("file", "old")]


def test_the_oldest_rollouts_go_when_there_is_no_more_room(tmp_path):
    said, generator, columns = [], random.Random(0), {"policy_logprobs_N": np.zeros(2), "entropy_N": np.zeros(2)}
    columns |= {"rewards_R": np.array([np.nan]), "penalties_R": np.zeros(1), "reasons_R": text_column(["broke"])}
    logprobs = [[-0.123456789, float("-inf")]]
    rollouts = Rollouts.of([[1]], [[2, 3]], sampler_logprobs=logprobs, credits_N=np.array([0.5, -1.0]), **columns)
    for start in (1, 4):  # and again as a resumed run
        files = RolloutFiles(tmp_path, 1, said.append)
        for step in range(start, start + 3):
            text = "".join(map(chr, generator.choices(range(33, 127), k=500_000)))
            files.write_step(step, rollouts, [Problem("p", "1", {})], [text], [["a", "b"]])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-00000{n}.jsonl.gz" for n in (5, 6)]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 1 << 20
    assert len(said) == 2 and "has reached run.rollouts_mib = 1: from step-000001.jsonl.gz on" in said[0]
    (row,) = read_jsonl(tmp_path / "step-000006.jsonl.gz")
    assert row["sampler_logprobs"] == [-0.12346, None] and row["reward"] is None
    assert row["advantage"] is None and row["credits"] == [0.5, -1.0]
