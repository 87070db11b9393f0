"""The page in headless Chromium: live beside a growing run, alone as a report, unharmed by what models write."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, find_chromium
from many_rollouts import write_many
from watched_run import MARKUP, TURNED, metrics, rollout, write_evaluation, write_gzip, write_run

from fastrl.watch import server
from fastrl.watch.report import write_report
from fastrl.watch.server import WatchServer

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")

TEXTS = "Array.from(document.querySelectorAll({!r}), node => node.textContent)"
VIEWS = ("curves", "rollouts", "evaluations", "ledger", "settings")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def served(run) -> Iterator[str]:
    with WatchServer([run], 0) as live:
        threading.Thread(target=live.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield live.url
        live.shutdown()


def show(browser: Browser, url: str, view: str) -> None:
    browser.open("about:blank")
    browser.problems.clear()
    browser.open(f"{url}#{view}")
    browser.wait("document.querySelector('#view')?.children.length")
    browser.wait(f"document.querySelector('#tabs a[aria-current]').hash === '#{view}'")


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.evaluate(TEXTS.format(selector))


def pick(browser: Browser, number: int) -> None:
    browser.wait(f"document.querySelectorAll('.row .snippet').length > {number}")
    browser.evaluate(f"listing.nodes.detail.replaceChildren(); document.querySelectorAll('.row')[{number}].click()")
    browser.wait(f"document.querySelectorAll('.row')[{number}].classList.contains('chosen')")
    browser.wait("document.querySelector('.tokens span')")


@pytest.mark.parametrize("kind", ["server", "file"])
def test_every_view_shows_a_hostile_run_and_takes_no_harm(browser, run, served, kind):
    url = served if kind == "server" else write_report(run).as_uri()
    for width, view in ((1400, "curves"), (800, "evaluations"), (1400, "ledger"), (800, "settings")):
        browser.look(width, 900)
        show(browser, url, view)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width  # nothing is cut at the right
        assert browser.evaluate("[window.harmed === undefined, document.images.length]") == [True, 0]
    show(browser, url, "curves")
    captions = texts(browser, "figcaption b")
    assert {"reward", "reward by function", "sign of the rollouts' credit", "entropy", "pass@k, validation"} <= set(
        captions
    )
    assert "time of a step by phase" in captions and "format" in texts(browser, ".legend span")
    assert texts(browser, "details td:nth-child(2)") == [MARKUP] * 3
    show(browser, url, "ledger")
    assert {"penalised −20.0 %", "correct +5.0 %", "other wrong +10.0 %", "not drawn +5.0 %"} == set(
        texts(browser, ".label")
    )
    show(browser, url, "evaluations")
    browser.evaluate("document.querySelector('td button').click()")
    browser.wait("document.querySelectorAll('.answer').length === 6")
    assert texts(browser, ".answer .text")[0] == MARKUP and MARKUP in texts(browser, ".prompt")[0]
    assert browser.evaluate("window.harmed === undefined") and not browser.problems


@pytest.mark.parametrize("kind", ["server", "file"])
def test_a_rollout_is_coloured_token_by_token(browser, run, served, kind):
    browser.look(1400, 900)
    show(browser, served if kind == "server" else write_report(run).as_uri(), "rollouts")
    pick(browser, 0)
    assert "".join(texts(browser, ".tokens > span")) == MARKUP
    colours = "Array.from(document.querySelectorAll('.tokens > span'), node => node.style.background)"
    strengths = browser.evaluate(colours)
    assert ["c1" in s for s in strengths] == [True, True, False, False, False]  # credits −1, −½, 0, ½, 1
    assert ["c0" in s for s in strengths] == [False, False, False, True, True]
    assert "70%" in strengths[0] and "35%" in strengths[1] and strengths[2] == ""
    pick(browser, 3)
    browser.evaluate("document.querySelectorAll('.modes button')[1].click()")
    assert ["c0" in s for s in browser.evaluate(colours)] == [True, False]  # +0.5 and −0.5 nats by the update
    assert "log-prob change by the update +0.5" in browser.evaluate("document.querySelector('.tokens span').title")
    pick(browser, 1)
    seen = "".join(texts(browser, ".tokens"))
    assert seen == TURNED.replace("\u202e", "U+202E").replace("\u202c", "U+202C").replace("\0", "U+0000").replace(
        "\u200b", "U+200B"
    ).replace("\ud800", "U+D800")
    pick(browser, 2)
    assert len("".join(texts(browser, ".tokens"))) <= 200_000 and any(
        "cut: " in t for t in texts(browser, ".detail .note")
    )
    assert browser.evaluate("window.harmed === undefined") and not browser.problems


def test_the_page_follows_a_run_that_goes_on(browser, run, served):
    show(browser, served, "curves")
    browser.wait("document.querySelector('#state').textContent.startsWith('step 3 of 100')")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(4)) + "\n")
    browser.wait("document.querySelector('#state').textContent.startsWith('step 4 of 100')")
    assert browser.evaluate("state.runs[0].metrics['reward/mean'].at(-1)") == 0.4
    assert not browser.problems


def test_a_choice_stays_with_its_rollout_while_rows_move(browser, run, served, monkeypatch):
    monkeypatch.setattr(server, "LOOK_EVERY_S", 0.1)
    browser.look(1400, 900)
    show(browser, served, "rollouts")
    pick(browser, 4)
    chosen = "document.querySelector('.chosen .snippet')?.textContent"
    assert browser.evaluate(chosen) == "plain 4 of 3"
    browser.evaluate("refilter({order: 'oldest'})")
    browser.wait("document.querySelector('.row .facts')?.textContent.includes('step 1')")
    browser.wait(f"{chosen} === 'plain 4 of 3'")
    browser.evaluate("refilter({order: 'newest'})")
    write_gzip(run / "rollouts/step-000004.jsonl.gz", [rollout("brand new", number) for number in range(9)])
    browser.wait("document.querySelector('.row .snippet')?.textContent === 'brand new'")  # by itself
    browser.wait("document.querySelector('.browser > .note').textContent === '27 rollouts'")
    assert browser.evaluate(chosen) == "plain 4 of 3"
    key = "new KeyboardEvent('keydown', {key: 'ArrowDown'})"
    browser.evaluate(f"document.querySelector('.list').dispatchEvent({key})")
    browser.wait(f"{chosen} === 'plain 5 of 3'")
    browser.wait("document.querySelector('.tokens')?.textContent === 'plain 5 of 3'")
    assert not browser.problems


def test_warnings_stay_open_while_a_run_goes_on(browser, run, served):
    show(browser, served, "curves")
    browser.evaluate("document.querySelector('details').open = true")
    browser.wait("state.isWarned[0]")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(4)) + "\n")
    browser.wait("document.querySelector('#state').textContent.startsWith('step 4 of 100')")
    assert browser.evaluate("document.querySelector('details').open")


def type_into(browser: Browser, name: str, text: str) -> None:
    field = f"document.querySelector('[name={name}]')"
    browser.evaluate(f"{field}.value = {text!r}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))")


def test_of_many_rollouts_only_those_in_sight_exist(browser, tmp_path):
    write_run(tmp_path / "run", num_steps=0)
    write_many(tmp_path / "run" / "rollouts", 3000, num_tokens=4)
    with WatchServer([tmp_path / "run"], 0) as live:
        threading.Thread(target=live.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        browser.look(1400, 900)
        show(browser, live.url, "rollouts")
        browser.wait("document.querySelector('.browser > .note').textContent === '3,000 rollouts'")
        assert 0 < browser.evaluate("document.querySelectorAll('.row').length") < 60
        browser.evaluate("document.querySelector('.list').scrollTop = 1e9")
        browser.wait("[...document.querySelectorAll('.row')].at(-1).textContent.includes('p-63')")  # of step 1
        type_into(browser, "text", "needle-2000")
        browser.wait("document.querySelector('.browser > .note').textContent === '1 rollouts'")
        type_into(browser, "text", "")
        type_into(browser, "min_reward", "1")
        browser.wait("document.querySelector('.browser > .note').textContent === '1,500 rollouts'")
        live.shutdown()
    assert not browser.problems


def test_a_missing_ledger_is_told_from_a_broken_one(browser, run):
    ledger, config, said = run / "ledger.jsonl", run / "config.toml", []
    for lines, every in (('{"step": 3}\n', 2), ("", 2), ("", 0)):
        ledger.write_text(lines)
        config.write_text(f"[ledger]\nevery = {every}\n")
        show(browser, write_report(run).as_uri(), "ledger")
        said += texts(browser, "#view .empty")
    assert said == [
        "The ledger cannot be read.",
        "No measurement has been written yet.",
        "This run keeps no ledger: ledger.every is 0.",
    ]


def test_the_answers_are_those_that_were_asked_for_last(browser, run):
    show(browser, write_report(run).as_uri(), "evaluations")
    browser.evaluate("""[window.ask, window.wait] = [source.completions, [500, 0]];
        source.completions = async (...asked) => {
            await new Promise(resolve => setTimeout(resolve, window.wait.shift()));
            window.answered = (window.answered || 0) + 1;
            return window.ask.apply(source, asked);
        }; 0""")
    browser.evaluate("document.querySelectorAll('td button').forEach(button => button.click())")
    browser.wait("window.answered === 2")
    assert texts(browser, "#answers h2") == ["what was answered: validation-000002"]


def test_rewards_of_several_functions_are_drawn_by_kind_and_told_of_a_rollout(browser, run):
    kinds = {"mean": 0.5, "positive": 0.75, "negative": 0.0, "judged_share": 1.0}
    parts = {f"reward/{name}/{kind}": value for name in ("style", "length") for kind, value in kinds.items()}
    (run / "metrics.jsonl").write_text(json.dumps(metrics(1, **parts)) + "\n")
    write_gzip(run / "rollouts/step-000003.jsonl.gz", [rollout("x", 1, rewards={"style": 0.25, "length": None})])
    url = write_report(run).as_uri()
    show(browser, url, "curves")
    charts = dict(zip(texts(browser, "figcaption b"), texts(browser, "figure .legend"), strict=True))
    assert charts["reward by function"] == "format = style = length"
    assert charts["reward by function, of negative credit"] == "style = length"  # zeros are values
    assert "share of rollouts judged, by function" not in charts
    show(browser, url, "rollouts")
    pick(browser, 0)
    assert {"reward style0.25", "reward length–"} <= set(texts(browser, "dl div"))


HIDDEN = (
    0x00,
    0x0D,
    0x1B,
    0xAD,
    0x34F,
    0x17B4,
    0x200B,
    0x2028,
    0x202E,
    0x2066,
    0x2800,
    0x3164,
    0xFFA0,
    0xD800,
    0xE0041,
)


def test_characters_that_cannot_be_seen_are_shown_by_their_number(browser, run):
    show(browser, write_report(run).as_uri(), "curves")
    seen = browser.evaluate(f"{list(HIDDEN)}.map(sign => visible(String.fromCodePoint(sign)).textContent)")
    assert seen == [f"U+{sign:04X}" for sign in HIDDEN]
    assert browser.evaluate(r"visible('a\t\n é 😀').textContent") == "a\t\n é 😀"


def test_two_runs_are_told_apart_in_every_chart(browser, run, tmp_path):
    other = write_run(tmp_path / "other", num_steps=5)
    write_evaluation(other / "eval" / "test.json", 5)
    (other / "eval" / "test.json").write_text((other / "eval" / "test.json").read_text().replace("validation", "test"))
    with WatchServer([run, other], 0) as live:
        threading.Thread(target=live.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        browser.look(1400, 900)
        show(browser, live.url, "curves")
        captions = texts(browser, "figcaption b")
        state = browser.evaluate("document.querySelector('#state').textContent")
        live.shutdown()
    assert "run: step 3 of 100" in state and "other: step 5 of 100" in state
    for name in ("run", "other"):
        assert {f"sign of the rollouts' credit of {name}", f"time of a step by phase of {name}"} <= set(captions)
    assert "pass@k, test" in captions and texts(browser, "details summary")[1].startswith("5 warnings of other")
    dashed = "document.querySelectorAll('figure path[style*=dasharray]').length"
    assert browser.evaluate(dashed) >= 5 and not browser.problems
