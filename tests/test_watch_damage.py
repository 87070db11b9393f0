"""A run folder with a file that is not as this version writes it: the rest is shown, and what is not is said."""

import http.client
import io
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from many_rollouts import write_many
from rich.console import Console
from watched_run import rollout, write_gzip, write_run

from fastrl.watch import report
from fastrl.watch.report import report_data, write_report
from fastrl.watch.rollout_index import Filter, RolloutIndex
from fastrl.watch.server import WatchServer
from fastrl.watch.snapshot import RunView
from fastrl.watch.terminal import run_parts

KEPT = "eval/validation-000001.completions.jsonl.gz"


def of_rollout(**other: object) -> Callable[[Path], None]:
    return lambda run: write_gzip(
        run / "rollouts/step-000002.jsonl.gz", [rollout("first", 1), rollout("x", 2, **other)]
    )


def of_evaluation(**other: object) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        path = run / "eval/validation-000001.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | other))

    return write


def appended(name: str, text: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        with (run / name).open("a") as file:
            file.write(text)

    return write


def flipped(run: Path) -> None:
    content = bytearray((run / KEPT).read_bytes())
    content[20] ^= 0xFF
    (run / KEPT).write_bytes(content)


SNAPSHOT = {
    "evaluation without verdicts": (of_evaluation(problems=[{"id": "a"}]), "validation-000001.json is no evaluation"),
    "evaluation of a named step": (of_evaluation(step="last"), "validation-000001.json is no evaluation"),
    "another file among evaluations": (lambda run: (run / "eval/a.json").write_text("[]"), "a.json is no evaluation"),
    "ledger of another version": (appended("ledger.jsonl", '{"step": 3}\n'), "ledger.jsonl is no ledger of this"),
    "ledger with a torn line": (
        appended("ledger.jsonl", '{"step": 3, "ma\n{"step": 4}\n'),
        "ledger.jsonl:3 is not JSON",
    ),
    "settings": (lambda run: (run / "config.toml").write_text("a = "), "config.toml: Invalid value"),
}
ROLLOUTS = {
    "a reward that is a list": of_rollout(reward=[1]),
    "ids that are one number": of_rollout(completion_ids=7),
    "lines that are lists": lambda run: write_gzip(run / "rollouts/step-000002.jsonl.gz", [[1], 3]),
    "a torn file": lambda run: (run / "rollouts/step-000002.jsonl.gz").write_bytes(b"\x1f\x8b\x08torn"),
}
KEPT_FILES = {
    "flipped": flipped,
    "torn": lambda run: (run / KEPT).write_bytes((run / KEPT).read_bytes()[:-20]),
    "other lines": lambda run: write_gzip(run / KEPT, [3]),
}


def asked(run: Path, *paths: str) -> list[tuple[int, dict]]:
    """Answers of a server of its own."""
    found = []
    with WatchServer([run], 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        for path in paths:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.putrequest("GET", path, skip_host=True)
            connection.putheader("Host", f"127.0.0.1:{server.server_port}")
            connection.endheaders()
            answer = connection.getresponse()
            found.append((answer.status, json.loads(answer.read())))
        server.shutdown()
    return found


def in_terminal(run: Path, width: int = 200) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(*run_parts(RunView(run).snapshot(), width))
    return console.file.getvalue()


@pytest.mark.parametrize(("damage", "said"), SNAPSHOT.values(), ids=SNAPSHOT)
def test_a_broken_file_is_named_and_the_rest_is_shown(tmp_path, damage, said):
    run = write_run(tmp_path / "run")
    damage(run)
    ((status, (found,)),) = asked(run, "/api/runs")
    assert status == 200 and found["steps"] == [1, 2, 3] and found["evaluations"][-1]["step"] == 2
    assert len(found["unreadable"]) == 1 and said in found["unreadable"][0]
    assert RunView(run).snapshot()["unreadable"] == found["unreadable"]
    assert "cannot be read: " in " ".join(in_terminal(run).split())
    assert said.split()[0] in write_report(run).read_text()


@pytest.mark.parametrize("damage", ROLLOUTS.values(), ids=ROLLOUTS)
def test_rollouts_of_a_broken_file_are_counted_as_such(tmp_path, damage):
    run = write_run(tmp_path / "run")
    damage(run)
    index = RolloutIndex(run / "rollouts")
    index.refresh()
    found = index.page(Filter(), 0, 50)
    assert (found["num_indexed"], found["num_unreadable"], found["total"]) == (3, 1, 12)
    index.close()
    sample = report_data(RunView(run))["rollouts"]
    assert sample["num_unreadable"] == 1 and {1, 3} <= {row["step"] for row in sample["rows"]}


@pytest.mark.parametrize("damage", KEPT_FILES.values(), ids=KEPT_FILES)
def test_completions_of_a_broken_file_are_an_error_of_theirs(tmp_path, damage):
    run = write_run(tmp_path / "run")
    damage(run)
    ((status, found),) = asked(run, "/api/completions?run=0&name=validation-000001")
    kept = report_data(RunView(run))["completions"]
    assert status == 400 and found["error"] == kept["validation-000001"]["error"]
    assert "is not a file of completions" in found["error"] and len(kept["validation-000002"]["rows"]) == 6


def test_numbers_that_are_not_there_are_no_numbers(tmp_path):
    run = write_run(tmp_path / "run")
    of_rollout(advantage=None, credits=[None, 1.0], problem_id=7)(run)
    of_evaluation(pass_at_k={"1": {"mean": None, "low": None, "high": None}})(run)
    line = json.loads((run / "ledger.jsonl").read_text().splitlines()[-1])
    (run / "ledger.jsonl").write_text(json.dumps(line | {"moved": dict.fromkeys(line["moved"])}) + "\n")
    index = RolloutIndex(run / "rollouts")
    index.refresh()
    (row,) = index.page(Filter(problem="7", min_step=2, max_step=2), 0, 9)["rows"]
    assert row["credit"] == 1.0 and row["problem"] == "7"
    index.close()
    data = report_data(RunView(run))
    assert next(r for r in data["rollouts"]["rows"] if r["step"] == 2 and r["line"] == 1)["problem_id"] == "7"
    assert data["runs"][0]["evaluations"][0]["pass_at_k"] == {}
    assert "left the penalised –" in " ".join(in_terminal(run).split())


def test_copies_among_the_rollouts_are_not_the_runs(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("step-000001-copy", "step-0000001", "step-99999999999999999999", "step-²"):
        shutil.copy(run / "rollouts/step-000003.jsonl.gz", run / f"rollouts/{name}.jsonl.gz")
    index = RolloutIndex(run / "rollouts")
    index.refresh()
    assert (index.num_files, index.num_indexed, index.page(Filter(), 0, 1)["total"]) == (3, 3, 18)
    index.close()
    assert report_data(RunView(run))["rollouts"]["num_files"] == 3


def test_whatever_is_asked_is_answered(tmp_path):
    run = write_run(tmp_path / "run")
    many, long = "&".join(f"a{i}=1" for i in range(50)), "a" * 60_000
    found = asked(run, f"/api/runs?{many}", "http://[/", f"/api/rollouts?run=0&text={long}", "/api/nothing?run=0")
    assert [status for status, _ in found] == [400, 400, 400, 404] and all(text["error"] for _, text in found)
    shutil.rmtree(run)
    view = write_run(tmp_path / "run")
    with WatchServer([view], 0) as server:
        shutil.rmtree(view)
        with pytest.raises(FileNotFoundError, match=r"config\.toml"):
            server.snapshots("")


@pytest.mark.parametrize("width", [20, 37, 38, 39, 60, 75, 76, 120])
def test_the_terminals_view_fits_any_width(tmp_path, width):
    lines = in_terminal(write_run(tmp_path / "run"), width).splitlines()
    assert max(map(len, lines)) <= width and any("reward" in line for line in lines)


def test_the_bound_of_a_report_is_of_what_stands_in_it(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", num_steps=0)
    signs = "<" * 10_000  # six characters each
    write_gzip(run / "rollouts/step-000001.jsonl.gz", [rollout(signs, i, pieces=[signs]) for i in range(20)])
    empty = write_report(run).stat().st_size - 20 * 60_000
    monkeypatch.setattr(report, "ROLLOUT_BYTES", 300_000)
    assert 180_000 < write_report(run).stat().st_size - empty < 310_000


def test_an_index_without_room_keeps_what_it_has_and_says_so(tmp_path):
    write_many(tmp_path, 64 * 8, num_tokens=40)
    index = RolloutIndex(tmp_path)
    index._connection.execute("PRAGMA max_page_count = 16")  # "database or disk is full" after 64 KiB
    index.refresh()
    index.refresh()
    found = index.page(Filter(), 0, 1)
    assert "takes in no more: database or disk is full" in found["trouble"]
    assert 0 < found["total"] < 512 and found["total"] == 64 * found["num_indexed"]
    index.close()
