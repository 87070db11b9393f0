"""SIGKILL at random instants of a run, `--resume`, and again: the end is bitwise that of a run nobody disturbed.

A kill waits for a random step, then a random part of the time that two steps take; every third one waits for the draft
of a checkpoint instead. The process is frozen (SIGSTOP) before it dies, and made to print its stack: faulthandler's C
handler runs before any other instruction. So what a kill interrupted is known, not guessed, and the run has no hook.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_training import config_of

from fastrl.config.files import to_toml
from fastrl.config.schema import TrainConfig
from fastrl.records import checkpoints
from fastrl.records.jsonl import read_jsonl
from fastrl.run.training import train

NUM_STEPS = 60
PATIENCE_S = 120.0
# The innermost of these functions on the main thread's stack is what the kill interrupted.
PHASE_OF = {
    "_save_checkpoint": "checkpoint",
    "_validate": "evaluation",
    "_draw_groups": "generation",
    "generate": "generation",
    "score_sample": "scoring",
    "_run_engine_backward": "backward",
    "learn": "learn",
    "step": "optimizer",
}
LEARNING = ("learn", "backward", "optimizer")
MAIN = """
import faulthandler, signal, sys
faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
from fastrl.cli import main
sys.exit(main(sys.argv[1:]))
"""


def long_config(folder: Path, model: Path) -> TrainConfig:
    """Micro-batches of one rollout, so that a step spends about as long in its update as in its sampling."""
    config = config_of(folder, model)
    return replace(
        config,
        batch=replace(config.batch, micro_batch_tokens=24),
        evaluation=replace(config.evaluation, every=15),
        run=replace(config.run, num_steps=NUM_STEPS, checkpoint_every=3),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, countdown_folder) -> Path:
    return train(long_config(tmp_path_factory.mktemp("runs") / "undisturbed", countdown_folder))


def num_steps_of(folder: Path) -> int:
    """The last step whose rollouts are written."""
    return max((int(p.name[5:11]) for p in (folder / "rollouts").glob("step-*")), default=0)


def has_draft(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".*draft*"))


def phase_of(stacks: str) -> str:
    """The phase of the main thread, which faulthandler prints last, innermost call first."""
    functions = re.findall(r"line \d+ in (\S+)", stacks.rpartition("Thread 0x")[2].rpartition("Current thread")[2])
    return next((PHASE_OF[name] for name in functions if name in PHASE_OF), "other")


class Victim:
    """One process of `fastrl train --resume`, to be killed. All its children are in its session."""

    def __init__(self, folder: Path):
        command = [sys.executable, "-c", MAIN, "train", str(folder.parent / "config.toml"), "--resume"]
        self.folder, self.errors = folder, (folder.parent / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,
            env=os.environ | {"PYTHONSAFEPATH": "1"},
        )

    def wait_until(self, is_reached: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while True:
            is_over = self.process.poll() is not None or time.monotonic() > end
            if is_reached():
                return
            assert not is_over, self.said()
            time.sleep(0.0005)

    def said(self) -> str:
        return Path(self.errors.name).read_text()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def freeze_in_draft(self, delay_s: float) -> None:
        """Freeze while the draft of a checkpoint is on disk, `delay_s` after it was seen, or later ones."""
        while True:
            self.wait_until(lambda: has_draft(self.folder))
            time.sleep(delay_s)
            self.freeze()
            if has_draft(self.folder):
                return
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> str:
        """Ask the frozen process for its stack and kill it; the phase. With a draft on disk that is a checkpoint's.

        Python 3.11's faulthandler can die of a frame that is just being made: that is a death at a random instant too.
        """
        is_writing = has_draft(self.folder)
        self.process.send_signal(signal.SIGUSR1)
        self.process.send_signal(signal.SIGCONT)
        self.wait_until(lambda: self._died_of_the_stack() or self._has_whole_stack())
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL or self._died_of_the_stack()
        return "checkpoint" if is_writing else phase_of(self.said())

    def _died_of_the_stack(self) -> bool:
        return self.process.poll() == -signal.SIGSEGV and "most recent call first" in self.said()

    def _has_whole_stack(self) -> bool:
        return "most recent call first" in self.said() and self.said().endswith("<module>\n")

    def assert_no_child_survives(self) -> None:
        """Verifier workers notice by themselves that nobody listens any more."""
        end = time.monotonic() + 20
        while _group_exists(self.process.pid):
            assert time.monotonic() < end, "processes of a killed run are still there"
            time.sleep(0.05)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def kill_and_resume(undisturbed: Path, root: Path, model: Path, num_kills: int, seed: int) -> Counter[str]:
    """A run that dies `num_kills` times and is then finished; how often each phase was hit."""
    generator, hits = random.Random(seed), Counter()
    folder = root / "run"
    (root / "config.toml").write_text(to_toml(long_config(folder, model)))
    times = [p.stat().st_mtime for p in sorted((undisturbed / "rollouts").iterdir())]
    step_s = (times[-1] - times[0]) / (NUM_STEPS - 1)
    for number in range(1, num_kills + 1):
        start = num_steps_of(folder)
        room = (NUM_STEPS * number // (num_kills + 1)) - start
        target = start + generator.randint(1, max(1, room))
        victim = Victim(folder)
        victim.wait_until(lambda target=target: num_steps_of(folder) >= target)
        if number % 3 == 0:
            victim.freeze_in_draft(generator.uniform(0, 0.01))
        else:
            time.sleep(generator.uniform(0, 2 * step_s))
            victim.freeze()
        hits[victim.kill()] += 1
        victim.assert_no_child_survives()
    train(long_config(folder, model), resume=True)
    return hits


def assert_same_checkpoint(ours: Path, theirs: Path) -> None:
    """Byte by byte, but for the trainer's files, which hold their tensors in any order."""
    files = [{p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} for folder in (ours, theirs)]
    for contents in files:
        del contents[checkpoints.MANIFEST]  # has the checksums of the trainer's files
    assert files[0] == files[1], [name for name, content in files[0].items() if content != files[1].get(name)]
    tensors, other_tensors = map(checkpoints.load_tensors, (ours, theirs))
    assert tensors.keys() == other_tensors.keys()
    assert all(value.equal(other_tensors[name]) for name, value in tensors.items())
    assert [checkpoints.defect(folder) for folder in (ours, theirs)] == [None, None]


def assert_same_end(undisturbed: Path, folder: Path) -> None:
    """The last checkpoint and the best are the same; every record once."""
    ends = [checkpoints.latest_sound(f / "checkpoints", print) for f in (undisturbed, folder)]
    assert [e.name for e in ends] == [f"step-{NUM_STEPS:06d}"] * 2
    assert_same_checkpoint(*ends)
    assert_same_checkpoint(*(end.with_name("best") for end in ends))
    steps = [[row["step"] for row in read_jsonl(f / "metrics.jsonl")] for f in (undisturbed, folder)]
    assert steps[0] == steps[1]
    for records in ("rollouts", "eval"):
        names = [sorted(p.name for p in (f / records).iterdir()) for f in (undisturbed, folder)]
        assert names[0] == names[1]
    for path in (undisturbed / "rollouts").iterdir():
        assert path.read_bytes() == (folder / "rollouts" / path.name).read_bytes()
    assert not has_draft(folder)


def test_three_kills_change_nothing(undisturbed, countdown_folder, tmp_path):
    hits = kill_and_resume(undisturbed, tmp_path, countdown_folder, num_kills=3, seed=0)
    assert_same_end(undisturbed, tmp_path / "run")
    assert hits.total() == 3 and hits["checkpoint"], hits


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 25 starts of Python
def test_twenty_five_kills_hit_every_phase_and_change_nothing(undisturbed, countdown_folder, tmp_path):
    hits = kill_and_resume(undisturbed, tmp_path, countdown_folder, num_kills=25, seed=1)
    print(dict(hits))
    assert_same_end(undisturbed, tmp_path / "run")
    assert hits["generation"] and hits["checkpoint"] and sum(hits[phase] for phase in LEARNING), hits
