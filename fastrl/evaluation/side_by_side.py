"""What evaluations answered and how their runs trained, for the page of `fastrl compare`."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrl.config.flat import differing, flat_config
from fastrl.evaluation.kept import load_kept, prompt_text
from fastrl.evaluation.panels import Panel, curve_panel
from fastrl.records.series import Series

MOST_PROBLEMS, MOST_CHARS, MOST_POINTS = 40, 4000, 300
CURVES = {
    "reward/mean": "reward",
    "entropy/mean": "entropy, nats a token",
    "rollouts/mean_tokens": "tokens a completion",
}
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: control, format, surrogate, line ends


@dataclass(frozen=True)
class Answered:
    """A problem and, by evaluation, (head, completion) of those that were kept."""

    problem: str
    prompt: str
    answers: dict[str, list[tuple[str, str]]]


def run_of(path: Path) -> Path | None:
    """The run folder that an argument names, or whose evaluation it is."""
    folder = path if path.is_dir() else path.parent.parent
    return folder if (folder / "config.toml").is_file() else None


def training_panels(runs: Mapping[str, Path]) -> list[Panel]:
    """Reward, entropy and length by step of run folders by name."""
    curves: dict[str, dict[str, list]] = {metric: {} for metric in CURVES}
    for name, folder in runs.items():
        series = Series(folder / "metrics.jsonl")
        series.read()
        steps, metrics, _ = series.thinned(MOST_POINTS)
        for metric, found in curves.items():
            values = zip(steps, metrics.get(metric, ()), strict=False)
            found[name] = [(step, value) for step, value in values if value is not None]
    panels = [curve_panel(title, curves[metric], list(runs)) for metric, title in CURVES.items()]
    return [panel for panel in panels if panel]


def config_rows(runs: Mapping[str, Path]) -> dict[str, list[object]]:
    """Settings that differ between run folders, with the value in each."""
    return differing({name: flat_config(folder / "config.toml") for name, folder in runs.items()})


def answered(files: Mapping[str, Path], first: Sequence[str]) -> list[Answered]:
    """MOST_PROBLEMS at most, of evaluation files by name; those in `first` before the others. Texts can be shown."""
    problems: dict[str, Answered] = {}
    for name, file in files.items():
        for row in load_kept(file):
            key = str(row["problem_id"])
            entry = problems.setdefault(key, Answered(key, shown(prompt_text(row["prompt"])), {}))
            verdict = "correct" if row["is_correct"] else "wrong"
            head = f"{verdict} · {row['num_tokens']} tokens · {row['reason'] or ''}"
            entry.answers.setdefault(name, []).append((shown(head), shown(row["completion"])))
    order = [key for key in dict.fromkeys([*first, *problems]) if key in problems]
    return [problems[key] for key in order[:MOST_PROBLEMS]]


def shown(text: str) -> str:
    """The first MOST_CHARS characters, those that cannot be seen, or turn the direction, by their numbers."""
    cut = text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}… ({len(text)} characters)"
    is_hidden = (unicodedata.category(c) in HIDDEN and c not in "\n\t" for c in cut)
    return "".join(f"⟨U+{ord(c):04X}⟩" if hidden else c for c, hidden in zip(cut, is_hidden, strict=True))
