"""Real cells of the study, shortened: trained, killed, resumed, tested, collected. Minutes."""

import dataclasses
import json
import shutil
import threading
import time

import cells
import collect
import folders
import pytest
import results
import run

pytestmark = pytest.mark.slow


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The study's folders under tmp_path, with few problems and a base evaluation."""
    for module in (folders, run, collect):
        monkeypatch.setattr(module, "STUDY", tmp_path)
    for module, names in (
        (folders, ("BASE", "BASE_FOLLOWED")),
        (run, ("BASE", "BASE_FOLLOWED")),
        (collect, ("BASE", "BASE_FOLLOWED")),
    ):
        for name, file in zip(names, ("test.json", "validation.json"), strict=True):
            monkeypatch.setattr(module, name, tmp_path / "base" / file)
    monkeypatch.setattr(collect, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    for module in (cells, run):
        monkeypatch.setattr(module, "NUM_TEST", 4)
        monkeypatch.setattr(module, "NUM_FOLLOWED", 4)
    for module in (cells, collect):
        monkeypatch.setattr(module, "FOLLOW_EVERY", 3)
    monkeypatch.setattr(run, "BASE_SAMPLES", 8)
    monkeypatch.setattr(run, "chosen_lr", lambda sweep: 3e-5)
    return tmp_path


def short(name: str, **changes) -> cells.Cell:
    found = next(c for tier in cells.TIERS for c in cells.cells_of(tier) if c.name == name)
    settings = found.settings | ({"ledger.every": 3} if "ledger.every" in found.settings else {})
    return dataclasses.replace(found, num_steps=6, test_samples=8, settings=settings, **changes)


def test_a_cell_is_trained_killed_resumed_tested_and_collected(study, monkeypatch):
    cell = short("tier1.nsr")
    processes = run.Processes()
    run.prepare(processes, [cell], 1)
    folder = folders.CellFolder(cell)

    def stop_after_the_first_validation():
        while not folder.validation(3).exists():
            time.sleep(0.05)
        processes.stop()

    threading.Thread(target=stop_after_the_first_validation).start()
    with pytest.raises(RuntimeError, match="ended with status 130"):
        run.run_all(processes, [cell], 1)
    assert not folder.is_trained and "saving a checkpoint" in (folder.path / "log.txt").read_text()
    run.run_all(run.Processes(), [cell], 1)
    assert folder.is_finished
    written = folder.test.stat().st_mtime_ns
    run.run_all(run.Processes(), [cell], 1)  # nothing is left to do
    assert folder.test.stat().st_mtime_ns == written

    monkeypatch.setattr(collect, "TIERS", (0, 1))
    for module in (collect, folders):
        monkeypatch.setattr(module, "cells_of", lambda tier: [cell] if tier == 1 else [])
    collect.main()
    results.read.cache_clear()
    (found,) = results.cells("tier1").values()
    assert found.counts_SP.shape == (1, 4) and found.path_STP.shape == (1, 3, 4) and found.rows[0]["lr"] == 3e-5
    assert found.last_ledger("moved", "left_penalised") != 0 and found.rows[0]["ledger"][-1]["step"] == 6
    results.read.cache_clear()


@pytest.mark.parametrize(
    "name", ["tier3.random.nsr", "tier3.inverted.psr", "tier3.one-problem.nsr", "tier2.psr.u4.free.sum"]
)
def test_the_other_kinds_of_cell_run(study, name):
    cell = short(name)
    processes = run.Processes()
    run.prepare(processes, [cell], 1)
    run.run_all(processes, [cell], 1)
    assert json.loads(folders.CellFolder(cell).test.read_text())["num_problems"] == 4
    rows = [json.loads(line) for line in (folders.CellFolder(cell).run / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward/mean"] for row in rows if "reward/mean" in row]
    assert len(rewards) == 6
    if name == "tier3.inverted.psr":
        assert min(rewards) > 0.5
    if name == "tier2.psr.u4.free.sum":
        assert all(row.get("clip/positive", 0) == row.get("clip/negative", 0) == 0 for row in rows)


def test_weaker_initial_models_are_made_and_tested(study):
    weaker = [short("tier3.base200.nsr", warmup=steps) for steps in (2, 3)]
    run.prepare(run.Processes(), weaker, 2)
    for steps in (2, 3):
        tested = json.loads((study / f"warm-{steps}-base" / "test.json").read_text())
        assert tested["num_problems"] == 4 and tested["num_samples"] == 8
    run.run_all(run.Processes(), weaker[:1], 1)
    assert folders.CellFolder(weaker[0]).is_finished
    assert {"warm-2", "warm-3"} <= collect.base_rows().keys()


def test_a_task_of_its_own_starts_from_a_model_that_can_write_it(study):
    """The warm start is there already, so that it is not made again; what it scores before training is."""
    shutil.copytree(folders.warm_model(0), study / "start-truthrl")
    (study / "start-truthrl" / "warmup.toml").touch()
    cell = short("tier5.truthrl.ternary")
    run.prepare(run.Processes(), [cell], 1)
    run.run_all(run.Processes(), [cell], 1)
    test = collect.evaluation_row(folders.CellFolder(cell).test)
    start = collect.base_rows()[cell.start]
    assert test["ids"] == start["ids"] and start["measures"]["abstained"] == 0  # a model that never saw one
    assert not list((folders.CellFolder(cell).run / "eval").glob("*.json"))  # not followed


def test_told_cells_start_from_a_model_that_reads_critiques(study):
    """The warm start is there already, so that it is not made again; what it scores before training is collected."""
    shutil.copytree(folders.warm_model(0), study / "start-critique")
    (study / "start-critique" / "warmup.toml").touch()
    told = [short("tier9.critique-rules"), short("tier9.nsr-directive")]
    run.prepare(run.Processes(), told, 1)
    run.run_all(run.Processes(), told, 1)
    for cell in told:
        row = collect.cell_row(cell)
        assert row["start"] == "test.countdown-told" and row["followed"]["steps"] == [3, 6]
        assert row["test"]["ids"] == collect.base_rows()["test.countdown-told"]["ids"]
        assert ("refine/rescued_share" in row["windows"]["last"]) == (cell is told[0])
        assert bool(row["ledger"]) == (cell is told[1])
    assert len(collect.base_rows()["followed.countdown-told"]["ids"]) == 4
