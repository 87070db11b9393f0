"""`fastrl compare`: evaluations of the same problems side by side, as one figure and one page that needs no network.

Of run folders the page has training curves and the settings that differ, of evaluations that kept completions these.

Differences are to the first evaluation, paired by problem. Their 95 % bootstrap intervals over problems say what other
problems of the kind would change, not what another training seed would.
"""

import base64
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from fastrl.evaluation.panels import pass_panels, style
from fastrl.evaluation.results import load_evaluation
from fastrl.evaluation.side_by_side import answered, config_rows, run_of, training_panels
from fastrl.records.plot import plot_pass_at_k
from fastrl.records.tables import difference_table, difference_text, pass_table
from fastrl.statistics import Interval, paired_pass_difference, solved_and_lost

SPLITS = ("test", "validation", "train")  # of a run folder, the first that was evaluated
SCALARS = {
    "mean_token_entropy": "entropy, nats a token",
    "distinct_answers": "distinct answers",
    "distinct_correct_answers": "distinct correct answers",
    "majority_share": "share of the most frequent answer",
    "mean_length": "tokens",
    "truncated_share": "truncated share",
}
CALIBRATION = ("stated_share", "brier", "ece", "auroc")
FEW = 3  # evaluations whose bands can be told apart in one figure
PAGE = Path(__file__).with_name("comparison.html")  # a Jinja template


@dataclass(frozen=True)
class Difference:
    """An evaluation minus the first: pass@k by k, and the problems that only one of the two solves with any sample."""

    name: str
    pass_at_k: dict[int, Interval]
    newly_solved: list[str]
    lost: list[str]


def find_evaluation(path: Path) -> Path:
    """The evaluation file of a run folder, or the file itself. FileNotFoundError names what was looked for."""
    if not path.is_dir():
        return path
    candidates = [path / "eval" / f"{split}.json" for split in SPLITS]
    found = next((c for c in candidates if c.exists()), None)
    if found is None:
        looked_for = ", ".join(str(c.relative_to(path)) for c in candidates)
        raise FileNotFoundError(
            f"{path} holds no evaluation of a finished run ({looked_for}); name one of its evaluation files instead"
        )
    return found


def names_of(paths: list[Path]) -> list[str]:
    """Short, distinct names: the last parts of the paths, but for an ending that all share. ValueError for equals."""
    if len(set(paths)) < len(paths):
        twice = next(p for p, count in Counter(paths).items() if count > 1)
        raise ValueError(f"{twice} is named twice; there is nothing to compare")
    parts = [p.resolve().with_suffix("" if p.suffix == ".json" else p.suffix).parts for p in paths]
    while len({p[-1] for p in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [p[:-1] for p in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"some of {', '.join(map(str, paths))} are the same file; there is nothing to compare")


def differences(evaluations: dict[str, dict]) -> list[Difference]:
    """Every other evaluation minus the first. ValueError, with the names, for different problems."""
    (base_name, base), *others = evaluations.items()
    found = []
    for name, evaluation in others:
        try:
            pass_at_k = paired_pass_difference(evaluation, base)
        except ValueError as error:
            raise ValueError(f"{name} and {base_name} cannot be compared: {error}") from None
        found.append(Difference(name, pass_at_k, *solved_and_lost(base, evaluation)))
    return found


def compare(runs: list[Path], output: Path) -> str:
    """Write OUTPUT.png and OUTPUT.html; returns the tables as text. ValueError or OSError for bad input."""
    if len(runs) < 2:
        raise ValueError(f"fastrl compare needs at least two runs or evaluation files, got {len(runs)}")
    figure, page = (output.with_name(f"{output.name}{suffix}") for suffix in (".png", ".html"))
    for path in (figure, page):
        if path.exists():
            raise ValueError(f"{path} exists; a comparison overwrites nothing: choose another --output")
    names = names_of(runs)
    files = {n: find_evaluation(p) for n, p in zip(names, runs, strict=True)}
    evaluations = {n: load_evaluation(file) for n, file in files.items()}
    found = differences(evaluations)
    plot_pass_at_k(evaluations, figure)
    folders = {n: folder for n, path in zip(names, runs, strict=True) if (folder := run_of(path))}
    beside = {
        "training": training_panels(folders),
        "settings": config_rows(folders),
        "folders": list(folders),
        "answered": answered(files, [problem for d in found for problem in (*d.newly_solved, *d.lost)]),
    }
    text = page_of(evaluations, found, figure.read_bytes(), beside)
    page.write_text(text, encoding="utf-8", errors="replace")
    pairs = {f"{d.name} − {names[0]}": (evaluations[d.name], evaluations[names[0]]) for d in found}
    return f"{pass_table(evaluations)}\n{difference_table(pairs)}\nfigure: {figure}\npage: {page}"


def page_of(evaluations: dict[str, dict], found: list[Difference], png: bytes, beside: dict) -> str:
    """The page as HTML. Whatever comes from outside is escaped; the figure is part of the text.

    beside: `training`, `settings`, `folders` and `answered`, from `side_by_side`.
    """
    ks = sorted({int(k) for e in evaluations.values() for k in e["pass_at_k"]})
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": _percent, "points": _points, "number": _number}
    return environment.from_string(PAGE.read_text(encoding="utf-8")).render(
        evaluations=evaluations,
        differences=found,
        ks=ks,
        scalars={key: label for key, label in SCALARS.items() if any(key in e for e in evaluations.values())},
        calibration=CALIBRATION if any(e.get("calibration") for e in evaluations.values()) else (),
        image=base64.b64encode(png).decode(),
        bands=pass_panels(evaluations) if len(evaluations) > FEW else [],
        styles={name: style(number) for number, name in enumerate(beside["folders"])},
        **beside,
    )


def _percent(interval: dict | None) -> str:
    if interval is None:
        return "–"
    return f"{100 * interval['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _points(interval: Interval | None) -> str:
    return "–" if interval is None else difference_text(interval).rstrip()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
