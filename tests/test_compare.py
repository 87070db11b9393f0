"""`fastrl compare` on real evaluations of the warm-started model: figure, page, tables, and what it refuses."""

import base64
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread

from fastrl.cli import main
from fastrl.config.files import to_toml
from fastrl.config.schema import TrainConfig
from fastrl.config.settings import with_settings
from fastrl.evaluation.compare import names_of
from fastrl.evaluation.kept import kept_path, load_kept, save_kept
from fastrl.evaluation.results import save_evaluation
from fastrl.records.jsonl import read_jsonl

MODEL = Path(__file__).resolve().parent.parent / "models" / "countdown"


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory) -> tuple[Path, Path]:
    """A run folder with an evaluation at temperature 1, and a file of one at temperature 1.6."""
    folder = tmp_path_factory.mktemp("compare")
    warm, hot = folder / "warm" / "eval" / "test.json", folder / "hot.json"
    for path, temperature in ((warm, "1"), (hot, "1.6")):
        arguments = ["--model.path", str(MODEL), "--task.num-test", "8", "--task.num-workers", "1"]
        arguments += ["--sampler.max-new-tokens", "14", "--evaluation.num-samples", "8"]
        arguments += ["--evaluation.kept-completions", "8"] if temperature == "1.6" else []
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
    kept = {name: read_jsonl(path) for name, path in kept_files(warm, hot).items()}
    assert all(f">{html.escape(row['completion'])}</div>" in text for rows in kept.values() for row in rows)
    assert "Settings that differ" not in text and "Each with its own band" not in text  # no run folders, two bands
    assert main(["compare", str(warm), str(hot), "--output", str(tmp_path / "out")]) == 2
    assert "overwrites nothing" in capsys.readouterr().err


def kept_files(warm: Path, hot: Path) -> dict[str, Path]:
    return {"warm": kept_path(warm / "eval" / "test.json"), "hot": kept_path(hot)}


def test_evaluations_keep_the_first_completions_of_each_problem(evaluations, tmp_path):
    """All of the hot one, of which rewards and counts must agree; four a problem of the other, the default."""
    warm, hot = evaluations
    kept = {name: read_jsonl(path) for name, path in kept_files(warm, hot).items()}
    assert [row["sample"] for row in kept["warm"]] == [*range(4)] * 8
    assert [row["sample"] for row in kept["hot"]] == [*range(8)] * 8
    for problem in json.loads(hot.read_text())["problems"]:
        mine = [row for row in kept["hot"] if row["problem_id"] == problem["id"]]
        assert sum(row["is_correct"] for row in mine) == problem["num_correct"]
        assert {row["reward"] for row in mine if row["is_correct"]} <= {1.0}
    assert "completions" not in json.loads(hot.read_text())
    shutil.copy(kept_path(hot), kept_path(tmp_path / "x.json"))
    save_evaluation({"completions": []}, tmp_path / "x.json")  # an evaluation of this name that kept none
    assert load_kept(tmp_path / "x.json") == [] and not kept_path(tmp_path / "x.json").exists()
    kept_path(hot).with_name("broken.completions.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"broken\.completions\.jsonl\.gz is not a file of completions"):
        load_kept(hot.with_name("broken.json"))


def test_many_run_folders_have_panels_curves_and_settings(evaluations, tmp_path):
    hot, paths = evaluations[1], []
    for number in range(9):
        folder = tmp_path / f"run-{number}"
        (folder / "eval").mkdir(parents=True)
        shutil.copy(hot, folder / "eval" / "test.json")
        config = with_settings(TrainConfig(), {"optimizer.lr": 1e-6 * (number + 1), "run.folder": str(folder)})
        (folder / "config.toml").write_text(to_toml(config))
        rows = [{"step": s, "reward/mean": s * number, "entropy/mean": 1.0} for s in range(1, 4)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(str(folder))
    assert main(["compare", *paths, "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out.html").read_text()
    page = References(text)
    assert text.count("<polygon") == 9  # a band each, none over another
    assert text.count("<figcaption>reward</figcaption>") == 1 and "tokens a completion" not in text
    assert {"optimizer.lr", "1e-06", "9e-06", "run.folder"} <= set(page.cells) and "optimizer.beta1" not in text
    assert all(text[: m.start()].rstrip().endswith('tabindex="0">') for m in re.finditer("<table", text))


def test_completions_cannot_inject(evaluations, tmp_path):
    for name, path in zip(("a", "b"), (evaluations[0] / "eval" / "test.json", evaluations[1]), strict=True):
        shutil.copy(path, tmp_path / f"{name}.json")
        rows = read_jsonl(kept_path(path))
        texts = ("<script>x</script>", "\u202eturned\0\ud800", "y" * 10**6)
        save_kept(
            [row | {"completion": text} for row, text in zip(rows, texts, strict=False)], tmp_path / f"{name}.json"
        )
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out.html").read_text()
    References(text)
    assert "&lt;script&gt;x&lt;/script&gt;" in text and "⟨U+202E⟩turned⟨U+0000⟩⟨U+D800⟩" in text
    assert "\u202e" not in text and "y… (1000000 characters)" in text and len(text) < 10**6


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
