"""An index over the rollout files of a run, in a temporary SQLite file: what a filter finds among 10⁵ rollouts.

The files are streamed one after the other, the newest first, and looked at again when they change. Memory is SQLite's
page cache and one file's line; the disk holds the first SEARCHED_CHARS characters of each completion.
"""

import math
import sqlite3
import tempfile
import threading
from array import array
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fastrl.watch.rollout_view import (
    BROKEN,
    MOST_LINES,
    mean_credit,
    reward_of,
    rollout_file,
    rollout_files,
    rollout_rows,
)
from fastrl.watch.snapshot import signature

SEARCHED_CHARS, SNIPPET_CHARS = 20_000, 160
MOST_ROWS = 200  # of one answer
ORDERS = {
    "newest": "step DESC, line",
    "oldest": "step, line",
    "reward": "reward DESC, step DESC, line",
    "credit": "credit DESC, step DESC, line",
    "least credit": "credit, step DESC, line",
    "longest": "tokens DESC, step DESC, line",
    "shortest": "tokens, step DESC, line",
}
TABLES = """
PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; PRAGMA cache_size = -16384;
CREATE TABLE rollout (step INTEGER, line INTEGER, problem TEXT, reward REAL, credit REAL, tokens INTEGER, reason TEXT,
                      PRIMARY KEY (step, line)) WITHOUT ROWID;
CREATE TABLE body (step INTEGER, line INTEGER, text TEXT, PRIMARY KEY (step, line));
"""
LISTING = f"""SELECT step, line, problem, reward, credit, tokens, reason, substr(text, 1, {SNIPPET_CHARS})
FROM rollout JOIN body USING (step, line)"""
LISTED = ("step", "line", "problem", "reward", "credit", "tokens", "reason", "snippet")


@dataclass(frozen=True)
class Filter:
    """What is asked for; all that is given must hold. problem, text: parts of them, A–Z in either case."""

    min_reward: float = -math.inf
    max_reward: float = math.inf
    min_tokens: float = 0
    max_tokens: float = math.inf
    min_step: float = 0
    max_step: float = math.inf
    problem: str = ""
    text: str = ""
    order: str = "newest"

    def sql(self) -> tuple[str, list]:
        """The condition and its values; a rollout without a reward is found where no bound on it is given."""
        parts, values = [], []
        for column in ("reward", "tokens", "step"):
            for name, sign in (("min", ">="), ("max", "<=")):
                if math.isfinite(bound := getattr(self, f"{name}_{column}")):
                    parts.append(f"{column} {sign} ?")
                    values.append(bound)
        for column in ("problem", "text"):
            if part := getattr(self, column):
                parts.append(f"{column} LIKE ? ESCAPE '\\'")
                values.append(f"%{_literal(part)}%")
        return " AND ".join(parts) or "1", values


def _literal(part: str) -> str:
    for sign in "\\%_":
        part = part.replace(sign, f"\\{sign}")
    return _storable(part)


def _storable(text: str) -> str:
    """Without what SQLite's text cannot hold."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


class RolloutIndex:
    """Of one folder of rollout files. `refresh` runs in a thread of its own; `page` answers in any."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._scratch = tempfile.TemporaryDirectory(prefix="fastrl-watch-")
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(Path(self._scratch.name) / "index.db", check_same_thread=False)
        self._connection.executescript(TABLES)
        self._known: dict[int, tuple] = {}
        self._num_changes, self._found = 0, array("q")
        self._answered: tuple[Filter, int] | None = None
        self.num_files = 0
        self.unreadable: dict[int, str] = {}
        self.trouble = ""

    @property
    def num_indexed(self) -> int:
        return len(self._known)

    def file(self, step: int) -> Path:
        return rollout_file(self.folder, step)

    def refresh(self, should_stop: threading.Event | None = None) -> None:
        """Take in files that are new or have changed, let go of those that were deleted, until there is `trouble`."""
        if self.trouble:
            return
        try:
            self._follow(should_stop)
        except sqlite3.Error as error:  # no room, as a rule
            self.trouble = f"the index in {self._scratch.name} takes in no more: {error}"

    def _follow(self, should_stop: threading.Event | None) -> None:
        found = {step: signature(path) for step, path in rollout_files(self.folder).items()}
        self.num_files = len(found)
        for step in [s for s in self._known if s not in found]:
            self._replace(step, [])
            del self._known[step]
        for step in sorted((s for s, mark in found.items() if self._known.get(s) != mark), reverse=True):
            if should_stop and should_stop.is_set():
                return
            self._take(step)
            self._known[step] = found[step]

    def _take(self, step: int) -> None:
        self.unreadable.pop(step, None)
        try:
            rows = [_indexed(step, line, row) for line, row in enumerate(rollout_rows(self.file(step)))]
        except FileNotFoundError:
            rows = []
        except BROKEN as error:
            rows, self.unreadable[step] = [], str(error)[:200]
        self._replace(step, rows)

    def _replace(self, step: int, rows: list[tuple]) -> None:
        with self._lock, self._connection as connection:
            self._num_changes += 1
            for table in ("rollout", "body"):
                connection.execute(f"DELETE FROM {table} WHERE step = ?", (step,))
            connection.executemany("INSERT INTO rollout VALUES (?, ?, ?, ?, ?, ?, ?)", [row[:-1] for row in rows])
            connection.executemany("INSERT INTO body VALUES (?, ?, ?)", [(*row[:2], row[-1]) for row in rows])

    def page(self, asked: Filter, offset: int, limit: int) -> dict:
        """`total` rollouts that are found, and `rows` of them from `offset` on. ValueError for an unknown order."""
        if asked.order not in ORDERS:
            raise ValueError(f"order = {asked.order!r}; known: {', '.join(ORDERS)}")
        one = f"{LISTING} WHERE step = ? AND line = ?"
        with self._lock:
            found = self._places(asked)
            places = found[offset : offset + min(limit, MOST_ROWS)]
            rows = [self._connection.execute(one, divmod(place, MOST_LINES)).fetchone() for place in places]
        state = {"num_indexed": self.num_indexed, "num_files": self.num_files, "num_unreadable": len(self.unreadable)}
        state["trouble"] = self.trouble
        return {"total": len(found), "rows": [dict(zip(LISTED, row, strict=True)) for row in rows], **state}

    def _places(self, asked: Filter) -> array:
        """All that is found, in order, as step · MOST_LINES + line.

        Remembered until the folder or the question changes: pages follow each other.
        """
        if self._answered != (asked, self._num_changes):
            condition, values = asked.sql()
            source = "rollout JOIN body USING (step, line)" if asked.text else "rollout"
            query = f"SELECT step * {MOST_LINES} + line FROM {source} WHERE {condition} ORDER BY {ORDERS[asked.order]}"
            self._found = array("q", (place for (place,) in self._connection.execute(query, values)))
            self._answered = asked, self._num_changes
        return self._found

    def row(self, step: int, line: int) -> dict | None:
        """A whole line of a file; None where it is not there, or not any more."""
        try:
            return next(islice(rollout_rows(self.file(step)), line, None), None)
        except BROKEN:
            return None

    def close(self) -> None:
        with self._lock:
            self._connection.close()
        self._scratch.cleanup()


def _indexed(step: int, line: int, row: dict) -> tuple:
    text = f"{row.get('completion') or ''}"[:SEARCHED_CHARS]
    num_tokens = len(row.get("completion_ids") or ())
    problem = _storable(str(row.get("problem_id")))
    reason = _storable(str(row.get("reason") or ""))
    return step, line, problem, reward_of(row), mean_credit(row), num_tokens, reason, _storable(text)
