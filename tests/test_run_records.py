"""Records are written in a thread: in order, a few at most, none after one that failed, all before their checkpoint."""

import threading
import time
from pathlib import Path

import pytest
from test_training import NUM_STEPS, STEPS, assert_bitwise_equal, config_of, weights

from fastrl.records import checkpoints
from fastrl.records.jsonl import read_jsonl
from fastrl.records.rollout_files import RolloutFiles
from fastrl.records.writer_thread import WriterThread
from fastrl.run.training import train
from fastrl.update import Updater

PATIENCE_S = 30.0


def test_actions_run_in_order_and_only_so_many_wait():
    thread, go, written = WriterThread("test", limit=2), threading.Event(), []
    thread.write(lambda: go.wait(PATIENCE_S) and written.append(0))
    thread.write(lambda: written.append(1))
    third = threading.Thread(target=lambda: thread.write(lambda: written.append(2)))
    third.start()
    third.join(0.2)
    assert third.is_alive() and not written
    go.set()
    third.join(PATIENCE_S)
    thread.wait()
    assert written == [0, 1, 2]
    thread.close()


def test_nothing_is_written_behind_a_gap():
    thread, written = WriterThread("test", limit=8), []

    def fail():
        raise OSError("full")

    thread.write(lambda: written.append(0))
    thread.write(fail)
    with pytest.raises(OSError, match="full"):
        thread.fence()()
    for call in (lambda: thread.write(lambda: written.append(2)), thread.check, thread.wait, thread.fence()):
        with pytest.raises(OSError, match="full"):
            call()
    thread.close()
    assert written == [0] and str(thread.error) == "full"


def test_closing_writes_what_was_handed_over():
    thread, written = WriterThread("test", limit=3), []
    for number in range(3):
        thread.write(lambda number=number: (time.sleep(0.05), written.append(number)))
    thread.close()
    assert written == [0, 1, 2]


@pytest.fixture
def around_rollouts(monkeypatch):
    """around_rollouts(before): before(step) is called in the thread, before a step's rollouts are written."""

    def install(before):
        original = RolloutFiles.write_step

        def write_step(self, step, *arguments):
            before(step)
            original(self, step, *arguments)

        monkeypatch.setattr(RolloutFiles, "write_step", write_step)

    return install


def test_a_step_does_not_wait_for_the_records_of_the_last(countdown_folder, tmp_path, monkeypatch, around_rollouts):
    updates, is_free, found = [], threading.Event(), []
    original = Updater.run

    def run(self, batch):
        updates.append(1)
        if len(updates) == 2:
            is_free.set()
        return original(self, batch)

    monkeypatch.setattr(Updater, "run", run)
    around_rollouts(lambda step: step == 1 and found.append(is_free.wait(PATIENCE_S)))
    train(config_of(tmp_path / "run", countdown_folder))
    assert found == [True]


def test_a_checkpoint_waits_for_the_records_of_its_steps(countdown_folder, tmp_path, around_rollouts):
    def look(step):
        time.sleep(1.0)  # longer than this checkpoint takes
        found[step] = checkpoints.final_path(tmp_path / "run" / "checkpoints", step).exists()

    found: dict[int, bool] = {}
    around_rollouts(look)
    folder = train(config_of(tmp_path / "run", countdown_folder))
    assert found == {1: False, 2: False, 3: False, 4: False}
    assert checkpoints.defect(folder / "checkpoints" / "step-000004") is None


def test_a_record_that_cannot_be_written_ends_the_run(countdown_folder, tmp_path, capsys, monkeypatch, around_rollouts):
    """Step 3's rollouts meet a full disk: no checkpoint of step 3 or 4 is made, and the run goes on from step 2."""

    def fail(step):
        if step == 3:
            raise OSError(28, "No space left on device")

    undisturbed = train(config_of(tmp_path / "undisturbed", countdown_folder))
    around_rollouts(fail)
    config = config_of(tmp_path / "run", countdown_folder)
    with pytest.raises(OSError, match=r"the records of step 3 could not be written: \[Errno 28\] No space left"):
        train(config)
    assert "no checkpoint without its records, the last one stays" in " ".join(capsys.readouterr().out.split())
    folder = Path(config.run.folder)
    assert checkpoints.latest_sound(folder / "checkpoints", print).name == "step-000002"
    monkeypatch.undo()
    train(config, resume=True)
    assert_bitwise_equal(weights(undisturbed), weights(folder))
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == STEPS
    names = [f"step-{step:06d}.jsonl.gz" for step in range(1, NUM_STEPS + 1)]
    assert [p.name for p in sorted((folder / "rollouts").iterdir())] == names
