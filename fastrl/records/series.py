"""Metrics as columns: a JSON-lines file that grows is read once, and shown with so many points at most.

Legend: S steps that have a line.
"""

import json
import math
import os
from array import array
from pathlib import Path

import numpy as np

NUM_WARNINGS = 50  # the last ones are kept
DIGITS = 6


class Series:
    """`metrics.jsonl` of a run, step by step. 8 bytes a number are held; lines of one step are one row."""

    def __init__(self, path: Path):
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._inode, self._offset = 0, 0
        self.steps = array("q")
        self.columns: dict[str, array] = {}
        self.warnings: list[tuple[int, str]] = []

    def read(self) -> None:
        """Take in what was written since. A file that another has replaced, as a resumed run does, is read anew."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())  # of what is open: the path may be another file by now
                if found.st_ino != self._inode or found.st_size < self._offset:
                    self._forget()
                    self._inode = found.st_ino
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):  # still being written
                        break
                    self._offset += len(line)
                    self._take(line)
        except FileNotFoundError:
            self._forget()

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # what a power cut left
        if not self.steps or self.steps[-1] != step:
            self.steps.append(step)
            for column in self.columns.values():
                column.append(math.nan)
        for name, value in row.items():
            if isinstance(value, (int, float)):
                if name not in self.columns:
                    self.columns[name] = array("d", [math.nan] * len(self.steps))
                self.columns[name][-1] = value
            elif name == "warnings" and value:
                self.warnings = [*self.warnings, (step, str(value))][-NUM_WARNINGS:]

    def thinned(self, most: int) -> tuple[list[int], dict[str, list[float | None]], int]:
        """(steps, values by name, n): each point is the mean of n steps in a row, of those that have the value."""
        width = max(1, -(-len(self.steps) // most))
        ends = np.arange(width - 1, len(self.steps) + width - 1, width).clip(max=len(self.steps) - 1)
        steps = np.array(self.steps)[ends].tolist() if len(self.steps) else []
        return steps, {name: _bucketed(column, width) for name, column in self.columns.items()}, width


def _bucketed(column_S: array, width: int) -> list[float | None]:
    values = np.array(column_S)
    rows = np.pad(values, (0, -len(values) % width), constant_values=np.nan).reshape(-1, width)
    counts = np.isfinite(rows).sum(axis=1)
    sums = np.where(np.isfinite(rows), rows, 0.0).sum(axis=1)
    means = np.divide(sums, counts, out=np.full(len(rows), np.nan), where=counts > 0)
    return [None if math.isnan(v) else float(f"{v:.{DIGITS}g}") for v in means.tolist()]
