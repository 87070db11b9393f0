"""The speedrun: bars against hand-made results, what is measured again, what a late or a dying row leaves behind."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import measure
import origin
import page
import pytest
import rows
import speedrun
import torch
from kernel_bars import HALF_IDLE, bar_of, verdict_of
from machine import Row as Timing

RESULTS = Path(__file__).resolve().parent.parent / "bench" / "results"
CARD = "NVIDIA H100 80GB HBM3"
LINE = {"card": CARD, "commit": "abc", "driver": None, "date": "2026-11-28", "versions": {}}
EAGER = rows.BY_NAME["train-0.6b-eager"]


def line(row: str, **values) -> dict:
    return LINE | {"row": row} | values


def timings(shape: str, device_ms: float, wall_ms: float, peak_bytes: int = 0) -> list[Timing]:
    """A floor of 1 ms on the device and 2 ms by the wall, and ours."""
    what = "loss + dX + dW" if shape.count("×") == 2 else "loss + gradient"
    floor = {"loss + gradient": "floor: read + write", "loss + dX + dW": "floor: three products"}[what]
    ours = Timing(what, shape, "fastrl", device_ms, peak_bytes=peak_bytes, wall_ms=wall_ms)
    return [Timing(floor, shape, "floor", 1.0, wall_ms=2.0), ours]


@pytest.mark.parametrize(
    ("shape", "device_ms", "wall_ms", "peak_bytes", "text"),
    [
        ("8192 × 151936", 1.15, 9.0, 0, "1.150 × floor (device), bar 1.15: met"),
        ("8192 × 151936 peaked", 1.16, 2.0, 0, "1.160 × floor (device), bar 1.15: missed"),
        ("8192 × 32000", 1.2, 2.0, 0, "1.200 × floor (device), bar 1.2: met"),
        ("2048 × 151936", 9.0, 2.6, 0, "1.300 × floor (wall), bar 1.3: met"),
        ("2048 × 151936", 1.0, 2.62, 0, "1.310 × floor (wall), bar 1.3: missed"),
        ("8192 × 4096 × 151936", 1.06, 2.0, 2_600_000_000, "1.060 × floor (device), bar 1.06, 2.6 GB of 2.6: met"),
        ("8192 × 4096 × 151936", 1.0, 2.0, 2_700_000_000, "1.000 × floor (device), bar 1.06, 2.7 GB of 2.6: missed"),
        ("2048 × 4096 × 151936", 1.13, 2.0, 0, "1.130 × floor (device), bar 1.12: missed"),
    ],
)
def test_a_kernel_is_held_against_the_floor_of_its_shape(shape, device_ms, wall_ms, peak_bytes, text):
    found = timings(shape, device_ms, wall_ms, peak_bytes)
    others = [replace(row, shape="8192 × 256000 peaked", time_ms=7.0, wall_ms=7.0) for row in found]
    assert str(verdict_of(found[1], [*others, *found])) == text


def test_half_idle_rows_are_held_against_busy_ones():
    found = timings("8192 × 4096 × 151936", 10.0, 10.0)
    half = replace(found[1], who=HALF_IDLE, time_ms=5.3)
    assert str(verdict_of(half, [*found, half])) == "0.530 × floor (device), bar 0.53: met"


def test_no_verdict_without_a_floor_a_time_or_a_bar():
    floor, ours = timings("8192 × 151936", 1.0, 1.0)
    assert verdict_of(ours, [ours]) is None
    assert verdict_of(replace(ours, wall_ms=None), [floor, ours]) is None
    assert bar_of(replace(ours, who="eager")) is None and bar_of(floor) is None


def test_the_fastest_setting_of_the_peer_is_the_one_to_beat():
    bar, peak = rows.BESIDE_TRL
    peers = [
        line("train-0.6b-trl-8", tokens_per_s=100, peak_gib=20.0),
        line("train-0.6b-trl-16", tokens_per_s=200, peak_gib=30.0),
        line("train-0.6b-trl-16", tokens_per_s=900, peak_gib=1.0) | {"card": "another"},
        line("train-0.6b-trl-8-liger", failed="out of memory"),
    ]
    assert page.verdict(bar, line(EAGER.name, tokens_per_s=441), peers) == "met"
    assert page.verdict(bar, line(EAGER.name, tokens_per_s=439), peers) == "missed"
    assert page.verdict(peak, line(EAGER.name, peak_gib=30.0), peers) == "met"
    assert page.verdict(peak, line(EAGER.name, peak_gib=30.1), peers) == "missed"
    assert page.verdict(bar, line(EAGER.name, tokens_per_s=441), []) == "not measured"


def test_what_fails_misses_its_bars_and_toys_and_other_cards_are_not_judged():
    bar = rows.TRAIN[0]
    assert page.verdict(bar, line(EAGER.name, failed="out of memory"), []) == "missed"
    assert page.verdict(bar, line(EAGER.name, tokens_per_s=90_000), []) == "met"
    assert page.verdict(bar, line(EAGER.name, tokens_per_s=90_000, is_dry=True), []) == "toy sizes"
    other = line(EAGER.name, tokens_per_s=90_000) | {"card": "NVIDIA H200"}
    assert page.verdict(bar, other, []) == "not judged, a bar for H100"


def test_a_page_has_every_row_with_its_failure_and_its_origin():
    text = page.markdown([line(EAGER.name, failed="old"), line(EAGER.name, failed="out of | memory")])
    assert all(row.name in text for row in rows.ROWS)
    assert "failed: out of / memory" in text and "old" not in text.partition("| row |")[2]
    assert f"[1] {CARD}, driver not recorded, commit abc, 2026-11-28" in text


def test_the_committed_page_is_made_of_the_committed_results():
    """Else: python bench/speedrun/speedrun.py --page"""
    assert (RESULTS / "speedrun.md").read_text() == page.markdown(page.read(RESULTS / "speedrun.jsonl"))


def test_a_row_is_measured_once_for_a_card_and_a_commit():
    chosen = [EAGER, rows.BY_NAME["train-0.6b-compiled"]]
    done = [line(EAGER.name), line("train-0.6b-compiled") | {"card": "another"}]
    assert speedrun.missing_rows(chosen, done, CARD, "abc") == chosen[1:]
    assert speedrun.missing_rows(chosen, done, CARD, "abd") == chosen
    changed = [x | {"commit": "abc+"} for x in done]
    assert speedrun.missing_rows(chosen, changed, CARD, "abc+") == chosen


def test_nothing_starts_that_would_not_end_and_kernels_share_a_process():
    first, second, third = (replace(EAGER, name=n, seconds=s) for n, s in (("a", 30), ("b", 40), ("c", 1)))
    assert speedrun.fitting([first, second, third], 69) == [first]
    assert speedrun.fitting([first, second, third], 71) == [first, second, third]
    groups = [[row.name for row in group] for group in speedrun.processes(speedrun.chosen_rows([], 1))]
    assert groups[0] == ["gpu-tests"] and len(groups) == 2 and all(n.startswith("kernels-") for n in groups[1])


def test_an_unknown_row_is_an_error_that_names_the_rows():
    with pytest.raises(
        ValueError, match=r"no row is called train-0\.6b-eagre; the rows: gpu-tests, kernels-8192x151936"
    ):
        speedrun.chosen_rows(["train-0.6b-eagre"], None)


@pytest.fixture
def child(tmp_path, monkeypatch):
    """child(code): what measures instead; it finds the results' file in sys.argv[1]."""
    (tmp_path / "speedrun").mkdir()
    monkeypatch.setattr(speedrun, "BENCH", tmp_path)
    return (tmp_path / "speedrun" / "measure.py").write_text


DONE = "import sys, os, time\nopen(sys.argv[1], 'a').write('{\"row\": \"gpu-tests\"}\\n')\n"


def test_a_process_that_dies_leaves_a_line_that_says_so(tmp_path, child):
    child(DONE + "os.abort()")
    file = tmp_path / "results.jsonl"
    speedrun.run_process([rows.BY_NAME["gpu-tests"], EAGER], file, "abc", 60.0, False)
    assert [x["row"] for x in page.read(file)] == ["gpu-tests", EAGER.name]
    assert page.read(file)[1]["failed"] == "the process ended with status -6"


def test_a_process_that_is_late_is_ended_with_what_it_started(tmp_path, child, capsys):
    grandchild = "import time, pathlib; time.sleep(3); pathlib.Path('{}').touch()".format(tmp_path / "alive")
    child(DONE + f"import subprocess\nsubprocess.run([sys.executable, '-c', {grandchild!r}])")
    file = tmp_path / "results.jsonl"
    speedrun.run_process([rows.BY_NAME["gpu-tests"], EAGER], file, "abc", 1.5, False)
    assert [x["row"] for x in page.read(file)] == ["gpu-tests"]
    assert f"out of time during {EAGER.name}" in capsys.readouterr().out
    time.sleep(2.5)
    assert not (tmp_path / "alive").exists()


def test_committing_results_measures_nothing_again(tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="no git repository: say what is measured with --commit HASH"):
        origin.measured_commit()
    for folder in ("fastrl", "kernels", "csrc", "bench/results"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "fastrl" / "code.py").write_text("")

    def commit() -> None:
        origin.git("add", "-A")
        origin.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "a")

    origin.git("init", "-q")
    commit()
    before = origin.measured_commit()
    (tmp_path / "bench" / "results" / "speedrun.jsonl").write_text("{}")
    assert origin.measured_commit() == before
    commit()
    assert origin.measured_commit() == before
    (tmp_path / "fastrl" / "code.py").write_text("1")
    assert origin.measured_commit() == before + "+"
    commit()
    assert origin.measured_commit() not in (before, before + "+")


@pytest.fixture
def one_thread():
    """Two threads wait for one another where the processor is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_training_row_is_measured_at_toy_sizes():
    found = measure.line_of(EAGER.name, "abc", 1.0, is_dry=True)
    assert "failed" not in found and found["commit"] == "abc" and found["is_dry"]
    assert found["tokens_per_s"] * found["step_s"] == pytest.approx(8 * (16 + 24), rel=0.01)


@pytest.mark.slow
def test_a_dry_run_leaves_a_line_of_every_row(tmp_path):
    command = [sys.executable, speedrun.__file__, "--dry-run", "--out", str(tmp_path), "--commit", "abc"]
    subprocess.run(command, check=True)
    found = page.read(tmp_path / "speedrun_dry.jsonl")
    assert [x["row"] for x in found] == [row.name for row in rows.ROWS]
    assert (tmp_path / "speedrun_dry.md").exists()
    subprocess.run(command, check=True)
    assert [json.dumps(x) for x in page.read(tmp_path / "speedrun_dry.jsonl")] == [json.dumps(x) for x in found]
    failed = {x["row"] for x in found if "failed" in x}
    assert not failed & {"gpu-tests", "train-0.6b-eager", "iteration-0.6b", "iteration-1.7b", "vllm-contract"}
