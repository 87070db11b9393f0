"""The machine's name for a row of results, and a table of results as JSON and Markdown."""

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch


def machine() -> str:
    """Processor or GPU, cores, torch version."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = fields[0] if fields else name
    return f"{name} × {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


@dataclass(frozen=True)
class Row:
    """One measurement. time_ms: median; p20_ms, p80_ms; peak_bytes: extra memory beside inputs and gradients.

    wall_ms: median with the host's part, where time_ms is a device's own.
    """

    what: str
    shape: str
    who: str
    time_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    peak_bytes: int | None = None
    note: str = ""
    wall_ms: float | None = None


@dataclass
class Table:
    title: str
    command: str
    folder: Path
    stem: str
    rows: list[Row] = field(default_factory=list)

    def markdown(self) -> str:
        def number(value: float | None, digits: int = 2) -> str:
            return "" if value is None else f"{value:.{digits}f}"

        lines = [f"# {self.title}", "", f"{machine()}", "", f"    {self.command}", ""]
        has_wall = any(row.wall_ms is not None for row in self.rows)
        lines.append(f"| what | shape | who | median ms | p20 | p80 |{' wall ms |' * has_wall} extra MB | note |")
        lines.append("|---" * (8 + has_wall) + "|")
        for row in self.rows:
            peak = None if row.peak_bytes is None else row.peak_bytes / 2**20
            numbers = [number(x) for x in (row.time_ms, row.p20_ms, row.p80_ms, *[row.wall_ms] * has_wall)]
            cells = [row.what, row.shape, row.who, *numbers, number(peak, 0), row.note]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def save(self) -> None:
        """folder/stem.json and folder/stem.md."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine(), "command": self.command, "rows": [asdict(row) for row in self.rows]}
        (self.folder / f"{self.stem}.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.folder / f"{self.stem}.md").write_text(self.markdown())
