"""What a run prints: the plain line to the letter, the live view by what a terminal would show."""

import io
import os
import re

import pytest

from fastrl.records.progress import LiveView, PlainView, duration, open_progress, step_cells, step_line, step_tables
from fastrl.records.step_metrics import no_gradient_reason

METRICS = {
    "reward/mean": 0.43,
    "rollouts/num_positive": 176,
    "rollouts/num_negative": 336,
    "rollouts/num_zero": 0,
    "rollouts/truncated_share": 0.031,
    "entropy/mean": 0.381,
    "mismatch/mean_abs": 0.003,
    "throughput/tokens_per_s": 12_345.6,
    "time/generate_s": 0.31,
    "time/verify_s": 0.02,
    "time/train_s": 0.55,
}
LINE = (
    "step 41/200  reward 0.430  +176 −336 0:0  truncated 3%  entropy 0.38  |Δlogp| 3.0e-03  "
    "12.3k tok/s  gen 0.31 verify 0.02 train 0.55 s"
)


class RecordingStream(io.StringIO):
    """Keeps what had been written at each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[str] = []

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


def test_step_line():
    assert step_line(41, 200, METRICS) == LINE
    assert (
        step_line(41, 200, METRICS | {"eval/pass_at_1": 0.3984, "warnings": 2}) == LINE + "  pass@1 0.398  warnings: 2"
    )
    assert step_line(41, 200, METRICS, left_s=143.4) == LINE + "  left 2:23"


def test_step_line_without_measurements():
    assert step_line(1, 2, {"entropy/mean": float("nan"), "reward/mean": None, "rollouts/num_zero": 4}) == (
        "step 1/2  reward –  +– −– 0:4  truncated –  entropy –  |Δlogp| –  – tok/s  gen – verify – train – s"
    )


@pytest.mark.parametrize(
    ("tokens_per_s", "text"),
    [(0, "0"), (999.4, "999"), (999.6, "1.0k"), (99_949, "99.9k"), (999_960, "1.0M"), (2_340_000, "2.3M")],
)
def test_throughput_is_rounded_into_its_unit(tokens_per_s, text):
    assert step_cells({"throughput/tokens_per_s": tokens_per_s})["tok/s"] == text


@pytest.mark.parametrize(("seconds", "text"), [(0.004, "0.00"), (9.994, "9.99"), (9.996, "10.0"), (123.44, "123.4")])
def test_seconds_lose_digits_as_they_grow(seconds, text):
    assert step_cells({"time/train_s": seconds})["train s"] == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.6, "0:09"), (3599.6, "1:00:00"), (750, "12:30"), (3723, "1:02:03"), (183_840, "2 d 03:04")]
)
def test_time_left(seconds, text):
    assert duration(seconds) == text


NOTHING = {"update/num_updates": 0, "update/num_nonfinite": 0, "rollouts/num": 8, "rollouts/num_unverified": 0}


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({"update/num_updates": 1}, ""),
        ({"reward/correct_share": 1.0, "groups/equal_share": 1.0}, "every completion is right"),
        ({"reward/correct_share": 0.0, "groups/equal_share": 1.0}, "every completion is wrong"),
        ({"reward/correct_share": 0.5, "groups/equal_share": 1.0}, "the rewards of each group are equal"),
        ({"reward/correct_share": 0.5, "groups/equal_share": 0.5}, "no token has credit"),
        ({"reward/correct_share": float("nan"), "rollouts/num_unverified": 8}, "no completion has a verdict"),
        ({"reward/correct_share": 0.5, "update/num_nonfinite": 1}, "it was not finite"),
    ],
)
def test_a_step_without_gradient_says_why(metrics, reason):
    assert no_gradient_reason(NOTHING | metrics) == reason
    assert step_line(41, 200, METRICS | NOTHING | metrics) == LINE + (f"  no gradient: {reason}" if reason else "")


def test_plain_view_writes_one_flushed_line_a_step(monkeypatch):
    clock = iter([100.0, 102.0, 112.0])
    monkeypatch.setattr("fastrl.records.progress.time.monotonic", lambda: next(clock))
    stream = RecordingStream()
    with open_progress(200, stream=stream) as progress:
        progress.message("resumed at step 40")
        progress.update(41, METRICS)  # 2 s a step, 159 to go
        assert stream.flushed[-1] == f"resumed at step 40\n{LINE}  left 5:18\n"
        progress.update(42, METRICS)  # 6 s a step, 158 to go
    assert stream.getvalue().splitlines()[-1] == f"{LINE.replace('41/', '42/')}  left 15:48"


def test_plain_view_on_an_ascii_stream():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    open_progress(41, stream=stream).update(41, METRICS)
    open_progress(200, stream=stream).message("problem “é” – timed out…")
    first, second = raw.getvalue().decode("ascii").splitlines()
    assert first == LINE.replace("−", "-").replace("Δ", "d").replace("/200", "/41") + "  left 0:00"
    assert second == r"problem \u201c\xe9\u201d - timed out..."


@pytest.mark.parametrize(
    ("term", "encoding", "view"),
    [("xterm", "utf-8", LiveView), ("dumb", "utf-8", PlainView), ("xterm", "ascii", PlainView)],
)
def test_a_terminal_gets_the_live_view(monkeypatch, term, encoding, view):
    monkeypatch.setenv("TERM", term)
    master, slave = os.openpty()
    with os.fdopen(slave, "w", encoding=encoding) as stream:
        assert type(open_progress(3, stream=stream)) is view
        assert type(open_progress(3, stream=stream, is_live=False)) is PlainView
    os.close(master)
    assert type(open_progress(3, stream=io.StringIO())) is PlainView


def last_frame(output: str) -> str:
    """The text after the last time that the view moved its cursor up to redraw."""
    return output.rsplit("\x1b[1A", 1)[-1]


def test_live_view_ends_with_the_last_ten_steps_and_keeps_messages(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    stream = io.StringIO()
    with open_progress(12, is_live=True, stream=stream) as progress:
        for step in range(1, 13):
            progress.update(step, METRICS | {"reward/mean": step / 100})
            if step == 6:
                progress.message("3 verifier [timeouts]")
    assert "3 verifier [timeouts]\n" in stream.getvalue().replace("\x1b[0m", "")
    frame = last_frame(stream.getvalue())
    assert "12/12" in frame
    assert [f"0.{step:02d}0" in frame for step in range(1, 13)] == [False] * 2 + [True] * 10


def test_live_view_gives_the_cursor_back_after_an_error(monkeypatch):
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), open_progress(2, is_live=True, stream=stream) as progress:
        progress.update(1, METRICS)
        raise KeyboardInterrupt
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert 0 <= stream.getvalue().rfind(hide) < stream.getvalue().rfind(show)


ROWS = [(9_998, step_cells(METRICS)), (9_999, step_cells(METRICS | {"eval/pass_at_1": 0.5, "warnings": "many"}))]
NAMES = "reward signs truncated entropy |Δlogp| tok/s gen s verify s train s pass@1".split()  # noqa: SIM905


def printed(rows, width: int) -> list[str]:
    from rich.console import Console, Group

    console = Console(width=width, file=io.StringIO())
    console.print(Group(*step_tables(rows, width)))
    return console.file.getvalue().splitlines()


def test_step_table_shows_late_columns_and_no_texts():
    header, first, second = printed(ROWS, 100)
    assert header.split() == ["step", *NAMES]
    assert " ".join(first.split()) == "9998 0.430 +176 −336 0:0 3% 0.38 3.0e-03 12.3k 0.31 0.02 0.55"
    assert second.split()[-1] == "0.500"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_nothing_is_cut_in_a_narrow_terminal(width):
    lines = printed(ROWS, width)
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    words = " ".join(lines).split()
    assert {"+176", "3.0e-03", "12.3k", "0.55", "0.500", *NAMES} <= set(words)
    assert words.count("9999") == words.count("step") == len(lines) // 3  # tables


def test_a_narrow_terminal_shows_fewer_steps_and_long_warnings_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = io.StringIO()
    warning = "verifier: timeout on 3 of 512, of which the first one had been running for 5 seconds"
    with open_progress(12, is_live=True, stream=stream) as progress:
        for step in range(1, 13):
            progress.update(step, METRICS | {"reward/mean": step / 100} | ({"warnings": warning} if step == 6 else {}))
    frame = last_frame(stream.getvalue())
    assert [f"0.{step:02d}0" in frame for step in range(1, 13)] == [False] * 7 + [True] * 5
    assert f"step 6: warnings: {warning}" in " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).split())
