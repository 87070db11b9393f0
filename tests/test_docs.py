"""The site of docs/ builds, links hold, nothing is asked of another machine, and its commands and numbers are so."""

import ast
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from shell import ENVIRONMENT

from fastrl.config.schema import EvalConfig, TrainConfig, WarmupConfig
from fastrl.config.settings import settings_of
from fastrl.evaluation.results import load_evaluation
from fastrl.kernels import TokenLoss, TokenRows, policy_loss
from fastrl.learning.objectives import OBJECTIVES
from fastrl.learning.reductions import REDUCTIONS, UpdateShape
from fastrl.records.jsonl import read_jsonl

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SETTINGS = {name for config in (TrainConfig(), EvalConfig(), WarmupConfig()) for name, _, _ in settings_of(config)}


def text_of(node: ast.AST) -> str | None:
    """The text of a string expression, with … for values; None for another expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return None if left is None and right is None else (left or "…") + (right or "…")
    return None


def texts(node: ast.AST):
    """Every string of a module that is no docstring, each as long as it is written."""
    text = text_of(node)
    if text is not None:
        yield text
    for child in ast.iter_child_nodes(node):
        is_part = text is not None and not isinstance(child, ast.FormattedValue)
        is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        if not is_part and not is_docstring:
            yield from texts(child)


def messages() -> set[str]:
    """All strings of the package that have words in them, on one line; pages and help that it writes are none."""
    paths = [*sorted((ROOT / "fastrl").rglob("*.py")), *sorted((ROOT / "kernels").rglob("*.py"))]
    found = {text for path in paths for text in texts(ast.parse(path.read_text()))}
    one_line = {" ".join(text.split()) for text in found if "\n" not in text.rstrip() and not text.startswith("usage:")}
    return {text for text in one_line if len(re.findall(r"[a-z]{2}", text)) > 3}


def names_a_setting(text: str) -> bool:
    """Whether a message names section.key or a --flag, and says something about it."""
    names = re.findall(r"\b[a-z_]+\.[a-z_.-]*[a-z_]", text)
    return " " in text and (any(name in SETTINGS for name in names) or bool(re.search(r"--(?!help)[a-z]", text)))


def entries() -> list[str]:
    """The messages that docs/troubleshooting.md explains."""
    page = (DOCS / "troubleshooting.md").read_text()
    return [entry.strip("`") for entry in re.findall(r"^#### (`.*`)$", page, re.MULTILINE)]


def as_pattern(message: str) -> re.Pattern:
    """Matches the message with any text for its values."""
    return re.compile(".*".join(map(re.escape, message.split("…"))))


def test_every_message_that_names_a_setting_has_an_entry():
    known = entries()
    missing = {m for m in messages() if names_a_setting(m) and not any(as_pattern(m).search(entry) for entry in known)}
    assert not missing, "docs/troubleshooting.md lacks entries:\n" + "\n".join(f"#### `{m}`" for m in sorted(missing))


def test_every_entry_has_its_message():
    patterns = [as_pattern(message) for message in messages()]
    stale = [entry for entry in entries() if not any(pattern.fullmatch(entry) for pattern in patterns)]
    assert not stale, "no such message any more:\n" + "\n".join(stale)
    assert len(set(entries())) == len(entries())


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. Strict: an unknown link, an unknown anchor or a page without a place in nav fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_site_asks_nothing_of_another_machine(site):
    """Scripts, styles, fonts and pictures are its own; links that a reader follows may lead elsewhere."""
    loaded = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*""")
    for page in site.rglob("*.html"):
        assert not loaded.findall(page.read_text()), page
        assert 'class="mermaid"' not in page.read_text(), "the theme fetches a script for mermaid"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"""(?:@import|url\()\s*["']?(?:https?:)?//[^)]*""", sheet.read_text()), sheet


def test_the_site_shows_what_markdown_meant(site):
    settings = (site / "settings.html").read_text()
    assert "reasoning-gym:&lt;dataset&gt;" in settings, "an escaped < is no tag"
    assert re.search(r"<ul>\s*<li><code>psr</code>", settings), "choices are a list in the list"
    measured = (site / "measured.html").read_text()
    assert '<a href="bench/studies/index.html">The study</a>' in measured, "a page of the repository joins"
    assert 'href="../../methods.html"' in (site / "bench/studies/index.html").read_text()
    assert "<td>qwen3-0.6b-gsm8k-nsr</td>" in (site / "recipes.html").read_text(), "another file is words"
    assert '<img alt="pass@k of the base' in measured and (site / "bench/studies/overview.png").is_file()
    reference = (site / "reference.html").read_text()
    assert 'id="kernels.ops.linear_policy_loss"' in reference and "without ever holding the (N,V) logits" in reference


@pytest.mark.parametrize("page", sorted(p.name for p in ROOT.glob("*.md")))
def test_links_of_the_root_hold(page):
    """What the site's own check does not see."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), f"{page} links to {target}"


def blocks(page: str, kind: str) -> list[str]:
    """The fenced blocks of a page, by language."""
    return re.findall(rf"^```{kind}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


RUN = """
import json, shlex, subprocess, sys
from fastrl.cli import main
for line in json.loads(sys.argv[1]):
    print("==", line, flush=True)
    program, *arguments = shlex.split(line, comments=True)
    if program == "fastrl":
        assert main(arguments) == 0, line
    else:
        subprocess.run(line, shell=True, check=True)
"""
SHORTER = {
    "num_steps = 20": "num_steps = 3",
    "num_samples = 64": "num_samples = 4",
    "rollouts_per_prompt = 32": "rollouts_per_prompt = 8",
}


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory) -> Path:
    """Where the files of the quick start lie, and all shell blocks were run: shorter, one after the other."""
    folder = tmp_path_factory.mktemp("quick-start")
    for name in ("models", "configs"):
        (folder / name).symlink_to(ROOT / name)
    for block in blocks("quick-start.md", "(?:python|toml)"):
        name, code = re.fullmatch(r"# (\S+)\n(.*)", block, re.DOTALL).groups()
        (folder / name).write_text(code)
    config = (folder / "my.toml").read_text()
    for long, short in SHORTER.items():
        assert long in config
        config = config.replace(long, short)
    (folder / "my.toml").write_text(config)
    shell = "".join(block for page in ("quick-start.md", "memory.md", "evaluating.md") for block in blocks(page, "sh"))
    shell = shell.replace("step-000020", "step-000003").replace("--run.num-steps 25", "--run.num-steps 4")
    command = [sys.executable, "-c", RUN, json.dumps(shell.splitlines())]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "said.txt").write_text(result.stdout)
    return folder


def test_the_quick_start_runs_as_it_is_written(newcomer):
    for row in read_jsonl(newcomer / "runs/mine/rollouts/step-000001.jsonl.gz"):
        digits, taken = row["prompt"].partition("=")[0].split(), [c for c in row["completion"] if c.isdigit()]
        assert row["reward"] == float(taken == digits)
    assert [row["step"] for row in read_jsonl(newcomer / "runs/mine/metrics.jsonl")] == [1, 2, 3, 4]
    base, mine, lora = (load_evaluation(newcomer / f"{name}.json") for name in ("base", "mine", "lora"))
    assert len(base["problems"]) == 50 and base["num_samples"] == 4
    assert base["problems"] != mine["problems"] != lora["problems"]
    assert (newcomer / "before-and-after.html").is_file() and (newcomer / "before-and-after.png").is_file()
    assert (newcomer / "runs/lora/checkpoints/step-000003/adapter_config.json").is_file()
    said = (newcomer / "said.txt").read_text()
    assert "mine − base" in said and "resuming from" in said


def test_the_other_commands_do_what_the_pages_say(newcomer):
    assert [row["reward"] for row in read_jsonl(newcomer / "scored.jsonl")] == [1.0]
    assert len(read_jsonl(newcomer / "runs/followed/ledger.jsonl")) == 4, "before the first update, and every step"
    parts = (newcomer / "said.txt").read_text().split("== fastrl ")
    said = {line: text for line, _, text in (part.partition("\n") for part in parts)}
    assert "probability per prompt" in said["ledger runs/followed"]
    assert "GiB" in said["plan my.toml"] and "judged again" in said["audit runs/mine"]
    on_one, on_eight = (text for line, text in said.items() if line.startswith("plan configs/countdown.toml --device"))
    assert on_one != on_eight and "79.2" in on_one


SHOWN = [  # of runs that are not there, of a model from the hub
    (page, line.partition("  #")[0].split()[1:])
    for page in ("watch.md", "recipes.md")
    for line in re.findall(r"^    (fastrl .*)", (DOCS / page).read_text(), re.MULTILINE)
]


@pytest.mark.parametrize(("page", "arguments"), SHOWN)
def test_a_command_that_is_only_shown_is_understood(page, arguments, tmp_path):
    """It is read to its end, and what it lacks here is no argument."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    command = [sys.executable, "-m", "fastrl.cli", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stderr.startswith("error: "), result.stdout + result.stderr
    assert re.search("is not a run folder|no evaluation file|on the Hub|vLLM is not installed", result.stderr), (
        result.stderr
    )


@pytest.mark.parametrize("index", range(2))
def test_the_kernels_page_runs(index, capsys):
    code = blocks("kernels.md", "python")
    assert len(code) == 2
    exec(code[index], {})
    promised = re.findall(r"print\(.*\)  # (.*)", code[index])
    assert capsys.readouterr().out.splitlines() == promised


def shown(picture: str, name: str) -> str:
    """The text of a picture that has this id."""
    return re.search(rf'id="{name}"[^>]*>([^<]*)<', (DOCS / "pictures" / picture).read_text())[1]


@pytest.mark.parametrize(
    ("name", "token", "advantage"),
    [("before", 0, 0.0), ("nsr-third", 2, -1.0), ("nsr-first", 0, -1.0), ("psr-first", 0, 1.0)],
)
def test_what_one_token_does_to_three(name, token, advantage):
    """One step of size 1 down the gradient of the product's own loss, from (.6, .3, .1)."""
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log().requires_grad_()
    rows = TokenRows(torch.tensor([token]), torch.tensor([advantage]))
    (gradient,) = torch.autograd.grad(policy_loss(logits.clone(), rows, TokenLoss()).loss, logits)
    after = [f"{p:.2f}"[1:] for p in (logits - gradient).detach().softmax(-1)[0].tolist()]
    assert shown("three-tokens.svg", name) == " · ".join(after)
    assert "| " + " | ".join(after) + " |" in (DOCS / "concepts.md").read_text()


@pytest.mark.parametrize("name", ["psr", "nsr", "grpo", "rloo"])
def test_advantages_of_the_picture(name):
    rewards = np.array([[1.0, 0.0, 0.0, 0.0]])
    found = OBJECTIVES[name]()(rewards, rewards == 1)[0]
    assert [float(x.replace("−", "-")) for x in shown("credit.svg", name).split()] == pytest.approx(found, abs=0.005)


@pytest.mark.parametrize("name", ["token-mean-kept", "token-mean-all", "sequence-mean", "constant"])
def test_weights_of_the_picture(name):
    """Under NSR the first of four completions is dropped; the limit is 16 tokens."""
    shape = UpdateShape(np.array([2, 4, 3, 3]), np.array([False, True, True, True]), np.zeros(4, int), 16, 4)
    assert [float(Fraction(x)) for x in shown("credit.svg", name).split()] == pytest.approx(REDUCTIONS[name](shape))


def test_files_that_the_docs_name_are_there():
    """Paths in code spans of the pages and in the picture of the loop."""
    named = re.findall(r'class="f"[^>]*>([a-z_]+/[^<]*)<', (DOCS / "pictures" / "loop.svg").read_text())
    assert len(named) > 8
    for page in [*DOCS.glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        named += re.findall(r"`((?:bench|configs|csrc|examples|fastrl|kernels|tests)/[\w./-]+)`", page.read_text())
    assert not {path for path in named if not (ROOT / path).exists()}


def test_the_citation_can_be_read():
    """The keys that CFF 1.2.0 requires, and the paper."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() and citation["cff-version"] == "1.2.0"
    assert all(set(author) & {"name", "family-names"} for author in citation["authors"])
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= paper.keys() and paper["url"] == "https://arxiv.org/abs/2506.01347"
    assert citation["version"] in (ROOT / "CHANGELOG.md").read_text()
