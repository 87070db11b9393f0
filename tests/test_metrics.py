"""The metrics file survives kills and resumes; the sinks see the same numbers."""

import json
import sqlite3
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from fastrl.records.jsonl import append_jsonl, read_jsonl
from fastrl.records.metrics import MetricsLog, check_sinks


def steps_in(folder) -> list[int]:
    return [row["step"] for row in read_jsonl(folder / "metrics.jsonl")]


def test_each_step_is_one_flushed_line_of_valid_json(tmp_path):
    log = MetricsLog(tmp_path / "run", sinks=(), config={})
    log.log(1, {"reward/mean": 0.5, "num": 3, "phase": "train", "kl": None})
    log.log(2, {"loss": float("nan"), "ratio": float("inf"), "np": np.float32(0.25), "count": np.int64(7)})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()  # before close: what a kill would leave
    assert text.splitlines() == [
        '{"step": 1, "reward/mean": 0.5, "num": 3, "phase": "train", "kl": null}',
        '{"step": 2, "loss": null, "ratio": null, "np": 0.25, "count": 7}',
    ]
    log.close()
    log.close()


def test_resume_drops_later_steps_and_a_torn_line(tmp_path):
    with MetricsLog(tmp_path, sinks=(), config={}) as log:
        for step in range(1, 6):
            log.log(step, {"x": step / 3})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "x\xc3')
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    with MetricsLog(tmp_path, sinks=(), config={}, resume_step=3) as log:
        log.log(4, {"x": -1})
    after = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert after[:3] == before[:3]
    assert after[3:] == [b'{"step": 4, "x": -1}']
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.dropped.jsonl", "metrics.jsonl"]
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.dropped.jsonl")] == [4, 5]


def test_resume_survives_a_kill_before_the_rename(tmp_path, monkeypatch):
    with MetricsLog(tmp_path, sinks=(), config={}) as log:
        log.log(1, {})
        log.log(2, {})

    def kill(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", kill)
        MetricsLog(tmp_path, sinks=(), config={}, resume_step=1)
    assert steps_in(tmp_path) == [1, 2]
    MetricsLog(tmp_path, sinks=(), config={}, resume_step=1).close()
    assert steps_in(tmp_path) == [1]


def test_resume_from_nothing_and_from_before_the_first_step(tmp_path):
    MetricsLog(tmp_path, sinks=(), config={}, resume_step=0).close()
    assert steps_in(tmp_path) == []
    with MetricsLog(tmp_path, sinks=(), config={}) as log:  # an empty file is no run
        log.log(1, {})
    MetricsLog(tmp_path, sinks=(), config={}, resume_step=0).close()
    assert steps_in(tmp_path) == []


def test_a_new_run_does_not_touch_an_old_one(tmp_path):
    with MetricsLog(tmp_path, sinks=(), config={}) as log:
        log.log(1, {})
    with pytest.raises(ValueError, match="already holds the metrics of a run"):
        MetricsLog(tmp_path, sinks=(), config={})
    assert steps_in(tmp_path) == [1]


def test_tensorboard_shows_the_numbers_of_a_resumed_run_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, config={"train": {"lr": 1e-4}}) as log:
        for step in (1, 2, 3):
            log.log(step, {"reward/mean": step / 4, "note": "text", "loss": float("nan")})
    with MetricsLog(tmp_path, config={"train": {"lr": 1e-4}}, resume_step=2) as log:
        for step in (3, 4):
            log.log(step, {"reward/mean": step * 2})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5), (3, 6.0), (4, 8.0)]
    (config,) = events.Tensors("config/text_summary")
    assert b'"lr": 0.0001' in config.tensor_proto.string_val[0]


def test_unknown_and_missing_sinks(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown metrics sink 'tensorbord'; did you mean 'tensorboard'\?"):
        MetricsLog(tmp_path / "run", sinks=("tensorbord",), config={})
    monkeypatch.setitem(sys.modules, "wandb", None)  # what Python keeps for a package that cannot be imported
    with pytest.raises(ValueError, match=r"'wandb' needs a package: pip install '\.\[track\]'"):
        MetricsLog(tmp_path / "run", sinks=("wandb",), config={})
    assert not (tmp_path / "run").exists()
    check_sinks(("tensorboard",))


LOG_AND_RESUME = """
import sys
from pathlib import Path
from fastrl.records.metrics import MetricsLog
folder, sink = Path(sys.argv[1]), sys.argv[2]
with MetricsLog(folder, sinks=(sink,), config={"lr": 1e-4}) as log:
    log.log(1, {"reward/mean": 0.5})
with MetricsLog(folder, sinks=(sink,), config={"lr": 1e-4}, resume_step=1) as log:
    log.log(2, {"reward/mean": 0.75})
"""


def log_and_resume(folder, sink: str, monkeypatch, **environment: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    subprocess.run([sys.executable, "-c", LOG_AND_RESUME, str(folder), sink], check=True, timeout=120)


def test_wandb_offline_continues_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    log_and_resume(tmp_path / "run", "wandb", monkeypatch, WANDB_MODE="offline", WANDB_SILENT="true")
    run_id = (tmp_path / "run" / "run_id").read_text()
    files = sorted(
        (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime
    )
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2
    rows = [row for path in files for row in wandb_history(path)]
    assert [(row["_step"], row["reward/mean"]) for row in rows] == [(1, 0.5), (2, 0.75)]


def wandb_history(path) -> list[dict]:
    """The rows that wandb would upload from one of its files, which is a LevelDB log: behind 7 bytes, records of a
    checksum (4 bytes), a length (2), a kind (1: whole) and a protobuf message; blocks end at 32 KiB, beyond ours."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, rows = path.read_bytes(), 7, []
    assert len(data) < 1 << 15
    while position < len(data):
        length, kind = struct.unpack_from("<HB", data, position + 4)
        assert kind == 1
        record = Record.FromString(data[position + 7 : position + 7 + length])
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        position += 7 + length
    return rows


def test_trackio_continues_one_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    log_and_resume(tmp_path / "run", "trackio", monkeypatch, TRACKIO_DIR=str(tmp_path / "db"))
    with sqlite3.connect(tmp_path / "db" / "fastrl.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    name = "run-" + (tmp_path / "run" / "run_id").read_text()
    values = [(run, step, json.loads(metrics)) for run, step, metrics in rows]
    assert values == [(name, 1, {"reward/mean": 0.5}), (name, 2, {"reward/mean": 0.75})]


def test_jsonl_keeps_model_output_and_arrays(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    row = {
        "completion": "lone \ud800 surrogate, \u2028, \x00 and é",
        "trainer_logprobs": torch.tensor([-0.5, float("nan")], dtype=torch.bfloat16),
        "tokens": (1, np.int32(2)),
        "is_correct": True,
    }
    append_jsonl(path, [row])
    append_jsonl(path, [{"reward": np.float64("-inf")}])
    assert path.read_bytes().isascii()
    assert read_jsonl(path) == [
        {"completion": row["completion"], "trainer_logprobs": [-0.5, None], "tokens": [1, 2], "is_correct": True},
        {"reward": None},
    ]


def test_read_jsonl_forgives_only_the_last_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"")
    assert read_jsonl(path) == []
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    assert read_jsonl(path) == [{"a": 1}]
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2 is not JSON"):
        read_jsonl(path)
