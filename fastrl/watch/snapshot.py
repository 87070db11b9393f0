"""All of a run but its rollouts, as JSON of a bounded size: what the page and the terminal's view show."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from fastrl.config.flat import flat_config
from fastrl.evaluation.kept import kept_path
from fastrl.records.jsonl import read_jsonl
from fastrl.records.series import Series

MOST_POINTS = 600  # of a curve
MOST_MEASUREMENTS = 300  # of the ledger
EVALUATED = ("num_problems", "num_samples", "mean_length", "mean_token_entropy", "truncated_share")
MEASURED = ("step", "mass", "base_mass", "moved")


class RunView:
    """A run folder that is looked at while it grows. ValueError where `path` is none."""

    def __init__(self, path: Path):
        self.path = path
        if not (path / "config.toml").is_file():
            raise ValueError(f"{str(path)!r} is not a run folder: it holds no config.toml (looked in {Path.cwd()})")
        self.series = Series(path / "metrics.jsonl")
        self._evaluations: dict[Path, tuple[tuple, dict, list[str]]] = {}

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def version(self) -> str:
        """Changes when the snapshot may have changed. Hexadecimal digits."""
        files = [self.path / name for name in ("config.toml", "metrics.jsonl", "ledger.jsonl")]
        files += [*self.evaluation_files(), *map(kept_path, self.evaluation_files())]
        return hashlib.sha256(repr([signature(path) for path in files]).encode()).hexdigest()[:32]

    def evaluation_files(self) -> list[Path]:
        return sorted((self.path / "eval").glob("*.json"))

    def snapshot(self) -> dict:
        """`config` flat; `metrics` by name, a value per entry of `steps`; `evaluations`; `ledger`; `warnings`.

        What cannot be read is said in `unreadable`, and the rest is there. OSError where the folder is gone.
        """
        unreadable: list[str] = []
        self.series.read()
        steps, metrics, width = self.series.thinned(MOST_POINTS)
        config = _or_say(lambda: flat_config(self.path / "config.toml"), {}, unreadable)
        written = (self.path / "metrics.jsonl").stat().st_mtime if steps else None
        return {
            "name": self.name,
            "version": self.version(),
            "written": written,
            "num_steps": config.get("run.num_steps"),
            "last_step": self.series.steps[-1] if steps else 0,
            "config": config,
            "steps": steps,
            "steps_a_point": width,
            "metrics": metrics,
            "warnings": self.series.warnings,
            "evaluations": sorted(self._read_evaluations(unreadable), key=lambda e: (e["step"], e["name"])),
            "ledger": _or_say(lambda: _ledger(self.path / "ledger.jsonl"), [], unreadable),
            "unreadable": unreadable,
        }

    def _read_evaluations(self, unreadable: list[str]) -> Iterator[dict]:
        for path in self.evaluation_files():
            mark = (signature(path), signature(kept_path(path)))
            if self._evaluations.get(path, (None,))[0] != mark:
                said: list[str] = []
                self._evaluations[path] = mark, _or_say(lambda path=path: _evaluation(path), {}, said), said
            _, found, said = self._evaluations[path]
            unreadable += said
            if found:
                yield found


def _or_say(read: Callable[[], dict | list], instead: dict | list, said: list[str]) -> dict | list:
    try:
        return read()
    except ValueError as error:
        said.append(str(error))
        return instead


def signature(path: Path) -> tuple[int, ...]:
    """Equal for a file that nobody touched."""
    try:
        found = path.stat()
    except OSError:  # gone, or not to be looked at
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _evaluation(path: Path) -> dict:
    """What is shown of one. ValueError for a file that is none."""
    try:
        found = json.loads(path.read_text())
        curve = {k: [v["mean"], v["low"], v["high"]] for k, v in found["pass_at_k"].items()}
        step, num_solved = int(found.get("step") or 0), sum(p["num_correct"] > 0 for p in found["problems"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is no evaluation ({error!r})") from None
    return {
        "name": path.stem,
        "step": step,
        "split": found.get("split") or "",
        "pass_at_k": {k: interval for k, interval in curve.items() if None not in interval},
        "has_completions": kept_path(path).exists(),
        "num_solved": num_solved,
        **{name: found.get(name) for name in EVALUATED},
    }


def _ledger(path: Path) -> list[dict]:
    """Lines of a ledger without what is told of single prompts and tokens; the first and the last among them.

    ValueError for a line that another version wrote.
    """
    rows = read_jsonl(path) if path.exists() and path.stat().st_size else []
    stride = max(1, -(-len(rows) // MOST_MEASUREMENTS))
    kept = rows[::stride] + (rows[-1:] if rows and (len(rows) - 1) % stride else [])
    try:
        return [{name: row[name] for name in MEASURED} for row in kept]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no ledger of this version (a line has no {error})") from None
