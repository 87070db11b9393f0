"""What `fastrl watch` reads and answers: columns of metrics, the index of rollouts, the server's refusals, a report."""

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from many_rollouts import write_many
from watched_run import LONG, MARKUP, metrics, rollout, write_gzip, write_run

from fastrl.cli import main
from fastrl.records.series import Series
from fastrl.watch import report
from fastrl.watch.page import embedded
from fastrl.watch.report import write_report
from fastrl.watch.rollout_index import Filter, RolloutIndex
from fastrl.watch.rollout_view import shown
from fastrl.watch.server import WatchServer
from fastrl.watch.snapshot import RunView
from fastrl.watch.terminal import sparkline


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("watched") / "run")


def append(path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_growing_file_is_read_once_and_a_replaced_one_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    series = Series(path)
    series.read()
    assert not series.steps
    path.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 3.0, "warnings": "w"}\n{"step": 3, "a"')
    series.read()
    assert series.steps.tolist() == [1, 2] and series.warnings == [(2, "w")]
    append(path, ': null, "b": 7}\n{"step": 3, "eval/c": 0.5}\n')
    series.read()
    steps, columns, width = series.thinned(10)
    assert (steps, width) == ([1, 2, 3], 1)
    assert columns == {"a": [1.0, 3.0, None], "b": [None, None, 7.0], "eval/c": [None, None, 0.5]}
    assert series.thinned(2) == ([2, 3], {"a": [2.0, None], "b": [None, 7.0], "eval/c": [None, 0.5]}, 2)
    (tmp_path / "draft").write_text('{"step": 1, "a": 5.0}\n')
    os.replace(tmp_path / "draft", path)  # as a resumed run
    series.read()
    assert series.thinned(10)[:2] == ([1], {"a": [5.0]})


def test_a_file_that_is_replaced_while_it_is_opened_is_not_mixed_with_the_new_one(tmp_path, monkeypatch):
    path, draft, real = tmp_path / "metrics.jsonl", tmp_path / "draft", Path.open
    path.write_text("".join(json.dumps({"step": step, "a": 1}) + "\n" for step in (1, 2, 3)))
    draft.write_text("".join(json.dumps({"step": step, "a": 2}) + "\n" for step in (1, 2, 3, 4)))

    def open_late(self, *arguments):
        file = real(self, *arguments)
        if draft.exists():
            os.replace(draft, path)
        return file

    monkeypatch.setattr(Path, "open", open_late)
    series = Series(path)
    series.read()
    series.read()
    assert series.thinned(10)[:2] == ([1, 2, 3, 4], {"a": [2.0] * 4})


def totals(index: RolloutIndex, **asked) -> int:
    return index.page(Filter(**asked), 0, 10)["total"]


def test_filters_find_what_is_there(tmp_path):
    write_many(tmp_path, 2000, num_tokens=8)
    index = RolloutIndex(tmp_path)
    index.refresh()
    assert totals(index) == 2000 and totals(index, min_reward=1) == 1000 and totals(index, max_reward=0.5) == 1000
    assert totals(index, problem="p-77") == 4 and totals(index, problem="P-499") == 4
    assert totals(index, min_step=2, max_step=3) == 128 and totals(index, max_tokens=7) == 0
    assert totals(index, text="needle") == 2 and totals(index, text="NEEDLE-1000", max_reward=0) == 1
    assert totals(index, text="needle%") == 0 and totals(index, problem="p_7") == 0  # no wild cards
    newest = index.page(Filter(), 0, 3)["rows"]
    assert [(row["step"], row["line"]) for row in newest] == [(32, 0), (32, 1), (32, 2)]
    assert newest[0]["tokens"] == 8 and newest[0]["credit"] == -1.0
    assert index.page(Filter(order="oldest"), 1999, 5)["rows"][0]["step"] == 32
    assert len(index.page(Filter(), 0, 10**6)["rows"]) == 200  # bounded
    assert index.row(16, 40)["completion"].startswith("needle-1000")
    assert index.row(16, 64) is None and index.row(99, 0) is None
    with pytest.raises(ValueError, match="order = 'best'; known: newest, oldest"):
        totals(index, order="best")
    index.close()


def test_the_index_follows_its_folder(tmp_path):
    write_many(tmp_path, 64 * 3, num_tokens=2)
    index = RolloutIndex(tmp_path)
    index.refresh()
    index.file(1).unlink()  # no more room
    write_gzip(index.file(2), [rollout("again", 5)])  # a resumed run
    index.file(3).write_bytes(index.file(3).read_bytes()[:-100])
    write_gzip(index.file(4), [rollout("new", 3), rollout("\ud800\0 odd", 4), rollout("none", 4, reward=None)])
    index.refresh()
    found = index.page(Filter(), 0, 10)
    assert found["total"] == 4 and found["num_unreadable"] == 1
    assert [row["snippet"] for row in found["rows"]] == ["new", "?\ufffd odd", "none", "again"]
    assert found["rows"][2]["reward"] is None and totals(index, max_reward=9) == 3
    index.close()


@pytest.mark.slow
def test_a_hundred_thousand_rollouts_take_bounded_memory(tmp_path):
    write_many(tmp_path, 100_000)
    script = f"""
import resource
from pathlib import Path
from fastrl.watch.rollout_index import Filter, RolloutIndex
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
index = RolloutIndex(Path({str(tmp_path)!r}))
index.refresh()
print(*(index.page(Filter(**f), 0, 100)["total"] for f in ({{}}, {{"min_reward": 1}}, {{"text": "needle"}})))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    counts, mib = result.stdout.splitlines()
    assert counts == "100000 50000 100" and float(mib) < 64


def test_a_rollout_is_shown_by_token_and_cut():
    found = shown(rollout("ab", 1))
    assert found["pieces"] == ["a", "b"] and found["credits"] == [1.0, 1.0] and not found["is_cut"]
    assert found["change"] == [0.5, -0.5] and found["gap"] == [-0.5, 0.0]
    long = shown(rollout(LONG, 1))
    assert long["is_cut"] and sum(map(len, long["pieces"])) == 1 and long["characters"] == 1_000_000
    old = shown({"completion": LONG, "completion_ids": [1], "advantage": 1.0, "prompt": "p" * 60_000})
    assert old["is_cut"] and len(old["pieces"][0]) == 200_000 and old["credits"] is None
    assert len(old["prompt"]) == 50_000 and old["prompt_characters"] == 60_000
    many = shown(rollout("ab", 1, pieces=["a"] * 30_000, completion_ids=[1] * 30_000, entropy=[0.0] * 30_000))
    assert many["is_cut"] and len(many["pieces"]) == len(many["entropy"]) == 20_000 and many["tokens"] == 30_000


@pytest.fixture(scope="module")
def server(run):
    with WatchServer([run], 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def get(server, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{server.server_port}" if host is None else host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_server_answers_itself_only(server):
    port = server.server_port
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, "/")[0] == get(server, "/", f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
        status, text = get(server, "/api/runs", host)
        assert status == 403 and "reward" not in text
    assert get(server, "/", method="POST")[0] == 501


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../config.toml", 404),
        ("/api/../../etc/passwd", 404),
        ("/api/completions?run=0&name=../config", 404),
        ("/api/completions?run=0&name=..%2F..%2Fetc%2Fpasswd", 404),
        ("/api/rollout?run=0&step=../1&line=0", 400),
        ("/api/rollout?run=0&step=9&line=0", 404),
        ("/api/rollout?run=7&step=1&line=0", 404),
        ("/api/rollouts?run=0&min_reward=much", 400),
        ("/api/rollouts?run=0&min_reward=nan", 400),
        ("/api/rollouts?run=0&offset=-1", 400),
        ("/api/rollouts?run=0&order=text;drop", 400),
    ],
)
def test_bad_questions_are_refused_and_name_no_file(server, path, status):
    found = get(server, path)
    assert found[0] == status and "error" in json.loads(found[1]) and "root:" not in found[1]


def test_a_run_that_has_not_changed_is_not_sent_again(server, run):
    (first,) = json.loads(get(server, "/api/runs")[1])
    assert json.loads(get(server, f"/api/runs?versions={first['version']}")[1]) == [None]
    append(run / "metrics.jsonl", json.dumps(metrics(4)) + "\n")
    (second,) = json.loads(get(server, f"/api/runs?versions={first['version']}")[1])
    assert second["steps"] == [1, 2, 3, 4] and second["metrics"]["reward/mean"][-1] == 0.4


def test_json_in_a_page_cannot_end_its_element():
    hostile = {"a": MARKUP, "b": "\u2028\ud800&amp;"}
    text = embedded(hostile)
    assert not re.search("[<>&\u2028]", text) and text.isascii() and json.loads(text) == hostile


def test_a_report_is_bounded_and_says_what_it_holds(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_ROLLOUTS", 5)
    monkeypatch.setattr(report, "MOST_STEPS", 2)
    data = report.report_data(RunView(run))
    assert [(row["step"], row["line"]) for row in data["rollouts"]["rows"]] == [(1, 0), (3, 0), (1, 1), (3, 1), (1, 2)]
    assert (data["rollouts"]["num_files"], data["rollouts"]["num_sampled_files"]) == (3, 2)
    assert {name: len(kept["rows"]) for name, kept in data["completions"].items()} == {
        "validation-000001": 6,
        "validation-000002": 6,
    }
    monkeypatch.setattr(report, "ROLLOUT_BYTES", 2000)
    assert len(report.report_data(RunView(run))["rollouts"]["rows"]) < 5
    text = write_report(run).read_text()
    assert text.count("</script>") == 2 and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_terminals_view_takes_texts_as_texts(run, capsys):
    append(run / "metrics.jsonl", json.dumps(metrics(5, warnings="\x1b]0;owned\x07 [red]careful")) + "\n")
    assert main(["watch", str(run), "--text", "--once"]) == 0
    said = capsys.readouterr().out
    assert "\x1b]" not in said and "\x07" not in said and "[red]careful" in said
    assert "step 5/100" in said and "validation 2" in said and "reward/format" in said
    assert "left the penalised +0.2000" in " ".join(said.split())
    assert sparkline([0, 1, None, 3.5, 7], 5) == "▁▂ ▅█"
    assert sparkline([0, 2, 7, 7], 2) == "▁█"


def test_bad_calls_are_one_message(run, tmp_path, capsys):
    for arguments, said in (
        ([str(tmp_path)], "is not a run folder: it holds no config.toml"),
        ([str(run)] * 3, "takes one run folder or two, got 3"),
        ([str(run), "--once"], "--once is for the terminal's view"),
        ([str(run), "--text", "--report"], "give one of them"),
        ([str(run), "--port", "99999"], "a port is a number from 0 to 65535"),
    ):
        assert main(["watch", *arguments]) == 2
        assert said in capsys.readouterr().err
