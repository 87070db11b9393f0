"""The watchdog on real hangs: with and without Python's lock, and inside a run that is then resumed."""

import os
import subprocess
import sys
import time

import pytest
from test_training import config_of

from fastrl.config.files import to_toml
from fastrl.process.watchdog import Watchdog, alive
from fastrl.run.training import train

HANGS = {
    "a lock that nobody gives back": "lock.acquire()",
    "C code that keeps Python's lock": "ctypes.PyDLL(None).sleep(60)",
    "C code": "ctypes.CDLL(None).sleep(60)",
}
SCRIPT = """
import ctypes, threading
from fastrl.process.watchdog import Watchdog, alive
lock = threading.Lock(); lock.acquire()
def hang_here():
    {hang}
with Watchdog(0.4):
    alive("collective")
    hang_here()
"""
HANGING_RUN = """
import ctypes, sys
from fastrl.cli import main
from fastrl.sampling.embedded import EmbeddedSampler

original, calls = EmbeddedSampler.generate, []

def blocked_in_a_driver(self, *arguments):
    calls.append(1)
    if len(calls) == 5:  # after two steps, their validation and a third step
        ctypes.CDLL(None).sleep(60)
    return original(self, *arguments)

EmbeddedSampler.generate = blocked_in_a_driver
sys.exit(main(sys.argv[1:]))
"""


def run_python(code: str, *arguments: str) -> tuple[subprocess.CompletedProcess, float]:
    start = time.monotonic()
    command, environment = [sys.executable, "-c", code, *arguments], os.environ | {"PYTHONSAFEPATH": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50)
    return result, time.monotonic() - start


@pytest.mark.parametrize("kind", HANGS)
def test_a_hang_ends_the_process_with_stacks(kind):
    result, seconds = run_python(SCRIPT.format(hang=HANGS[kind]))
    assert result.returncode == 1 and seconds < 20
    assert "in hang_here" in result.stderr
    if kind == "C code that keeps Python's lock":
        assert "Timeout" in result.stderr  # faulthandler's own timer: it cannot know the phase
    else:
        assert "no progress for" in result.stderr and "in phase 'collective'" in result.stderr


def test_a_run_that_hangs_says_where_and_can_be_resumed(countdown_folder, tmp_path):
    config = config_of(tmp_path / "run", countdown_folder, watchdog_s=5.0)
    (tmp_path / "config.toml").write_text(to_toml(config))
    result, _ = run_python(HANGING_RUN, "train", str(tmp_path / "config.toml"))
    assert result.returncode == 1, result.stderr
    assert "in phase 'generate' (run.watchdog_s = 5)" in result.stderr
    assert "in blocked_in_a_driver" in result.stderr and "in draw" in result.stderr
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000002"]
    train(config_of(tmp_path / "run", countdown_folder, watchdog_s=100.0), resume=True)
    assert (tmp_path / "run" / "checkpoints" / "step-000004").is_dir()


def test_progress_keeps_the_process_alive_and_the_end_of_the_block_disarms():
    code = """
import time
from fastrl.process.watchdog import Watchdog, alive
with Watchdog(0.5):
    time.sleep(1.2)  # not armed before the first sign of life: loading may take its time
    for _ in range(12):
        alive("work")
        time.sleep(0.1)
time.sleep(1.2)
with Watchdog(0):
    alive("work")
    time.sleep(0.2)
print("finished")
"""
    result, _ = run_python(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "finished\n", "")


def test_a_phase_keeps_its_name_until_the_next():
    with Watchdog(0) as outer:
        alive("generate")
        alive()
        with Watchdog(0) as inner:
            alive("evaluate")
        assert (outer.phase, inner.phase) == ("generate", "evaluate")
        alive("train")
    assert outer.phase == "train"
    alive("nobody watches")
    assert outer.phase == "train"
