"""`fastrl compare` on real evaluations of the warm-started model: figure, page, tables, and what it refuses."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread

from fastrl.cli import main
from fastrl.evaluation.compare import names_of

MODEL = Path(__file__).resolve().parent.parent / "models" / "countdown"


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory) -> tuple[Path, Path]:
    """A run folder with an evaluation at temperature 1, and a file of one at temperature 1.6."""
    folder = tmp_path_factory.mktemp("compare")
    warm, hot = folder / "warm" / "eval" / "test.json", folder / "hot.json"
    for path, temperature in ((warm, "1"), (hot, "1.6")):
        arguments = ["--model.path", str(MODEL), "--task.num-test", "8", "--task.num-workers", "1"]
        arguments += ["--sampler.max-new-tokens", "14", "--evaluation.num-samples", "8"]
        assert main(["eval", *arguments, "--evaluation.temperature", temperature, "--output", str(path)]) == 0
    return folder / "warm", hot


class References(HTMLParser):
    """Everything in a page that a browser would fetch or follow, and all cells of its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.references: list[str] = []
        self.cells: list[str] = []
        self.is_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.references += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "action")]
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        self.is_cell = tag in ("td", "th")

    def handle_data(self, data):
        if self.is_cell and data.strip():
            self.cells.append(data.strip())


def test_compare_writes_a_figure_and_a_page_without_references(evaluations, tmp_path, capsys):
    warm, hot = evaluations
    assert main(["compare", str(warm), str(hot), "--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    text = (tmp_path / "out.html").read_text()
    page = References(text)
    (image,) = page.references
    header, payload = image.split(",", 1)
    assert header == "data:image/png;base64" and base64.b64decode(payload) == (tmp_path / "out.png").read_bytes()
    assert imread(io.BytesIO(base64.b64decode(payload))).shape[1] > 1000
    without_image = text.replace(image, "")
    assert not re.search(r"https?:|//|url\(|@import", without_image)
    first, second = (json.loads(p.read_text()) for p in (warm / "eval" / "test.json", hot))
    assert {"warm", "hot", "8 × 8"} <= set(page.cells)
    for evaluation in (first, second):
        assert any(cell.startswith(f"{100 * evaluation['pass_at_k']['8']['mean']:.1f} [") for cell in page.cells)
    change = 100 * (second["pass_at_k"]["1"]["mean"] - first["pass_at_k"]["1"]["mean"])
    assert change < 0 and any(cell.startswith(f"−{-change:.1f} [") for cell in page.cells)
    solved = [{p["id"] for p in e["problems"] if p["num_correct"]} for e in (first, second)]
    assert f"{len(solved[1] - solved[0])} newly solved, {len(solved[0] - solved[1])} lost" in text
    assert all(name in text for name in solved[0] ^ solved[1])
    assert "pass@8" in output and "hot − warm" in output
    assert main(["compare", str(warm), str(hot), "--output", str(tmp_path / "out")]) == 2
    assert "overwrites nothing" in capsys.readouterr().err


def test_names_and_ids_cannot_inject(evaluations, tmp_path):
    warm, hot = evaluations
    evil = tmp_path / "<b onload=x>.json"
    evaluation = json.loads(hot.read_text())
    base = json.loads((warm / "eval" / "test.json").read_text())
    for problems in (evaluation["problems"], base["problems"]):
        problems[0]["id"] = "<script>alert(1)</script>"
        problems[0]["num_correct"] = 8 if problems is base["problems"] else 0
    evil.write_text(json.dumps(evaluation))
    (tmp_path / "base.json").write_text(json.dumps(base))
    assert main(["compare", str(tmp_path / "base.json"), str(evil), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out.html").read_text()
    References(text)
    assert "&lt;script&gt;" in text and "<b onload" not in text


def test_bad_input_is_one_message(evaluations, tmp_path, capsys):
    warm, hot = evaluations
    other = json.loads(hot.read_text())
    other["problems"][0]["id"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(other))
    (tmp_path / "empty").mkdir()
    output = ["--output", str(tmp_path / "out")]
    for runs, message in (
        ([warm], "at least two"),
        ([warm, warm], "named twice"),
        ([warm, tmp_path / "none.json"], "no evaluation file"),
        ([warm, tmp_path / "empty"], "holds no evaluation of a finished run"),
        ([warm, tmp_path / "other.json"], "other and warm cannot be compared: evaluations of different problems"),
    ):
        assert main(["compare", *map(str, runs), *output]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_names_are_as_short_as_they_can_be():
    assert names_of([Path("runs/a"), Path("runs/b.json")]) == ["a", "b"]
    assert names_of([Path("x/a/test.json"), Path("x/b/test.json")]) == ["a", "b"]
    assert names_of([Path("a/1.json"), Path("a/2.json"), Path("b/1.json")]) == ["a/1", "a/2", "b/1"]
    assert names_of([Path("runs/w0.1"), Path("runs/w0.2")]) == ["w0.1", "w0.2"]
