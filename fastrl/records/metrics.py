"""The metrics of a run: one JSON line a step in `metrics.jsonl`, forwarded to TensorBoard, wandb or trackio.

The file is the record and the sinks are views of it. A line is on disk when `log` returns, whole but for a torn last
line of a run that was killed in it. A resumed run drops what was logged after its checkpoint, so that each step is in
the file once.
"""

import difflib
import importlib.util
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from fastrl.records.dropped import drop_lines_after
from fastrl.records.durable import make_folder, sync, write_file
from fastrl.records.jsonl import append, as_json


class Sink(Protocol):
    """Where metrics go besides the file."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record finite numbers by name."""

    def close(self) -> None:
        """Write what is still buffered."""


class MetricsLog(AbstractContextManager):
    """`metrics.jsonl` in `folder` (created when missing) and the named sinks.

    config is the resolved configuration as a nested dict, shown by the sinks. resume_step is the step of the checkpoint
    that a resumed run starts from: later lines and a torn last line are dropped, the file being replaced atomically.
    None means a new run. Raises ValueError for a new run in a folder that has metrics, and where `check_sinks` does.
    """

    def __init__(
        self, folder: Path, *, sinks: tuple[str, ...] = ("tensorboard",), config: dict, resume_step: int | None = None
    ) -> None:
        check_sinks(sinks)
        folder = Path(folder).absolute()  # sinks name the run by it, and "." has no name
        make_folder(folder)
        path = folder / "metrics.jsonl"
        if resume_step is not None:
            drop_lines_after(path, resume_step)
        elif path.exists() and path.stat().st_size:
            raise ValueError(f"{path} already holds the metrics of a run; resume it or choose another folder")
        self._file = path.open("a", encoding="ascii")
        sync(folder)
        self._sinks: list[Sink] = [SINKS[name](folder, config, resume_step) for name in sinks]

    def log(self, step: int, metrics: dict[str, float | int | str | None]) -> None:
        """Append one line and forward the finite numbers; NaN and infinity become null (JSON has neither)."""
        values = as_json(metrics)
        append(self._file, [{"step": step, **values}])
        scalars = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
        for sink in self._sinks:
            sink.log(step, scalars)

    def close(self) -> None:
        """Close the file and the sinks; a second call does nothing."""
        self._file.close()
        while self._sinks:
            self._sinks.pop().close()

    def __exit__(self, *error) -> None:
        self.close()


def check_sinks(sinks: Iterable[str]) -> None:
    """Raise ValueError for an unknown sink, naming the nearest one, or for one whose package is not installed."""
    for name in sinks:
        if name not in SINKS:
            nearest = difflib.get_close_matches(name, SINKS, n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown metrics sink {name!r}; did you mean {nearest!r}? Known: {', '.join(SINKS)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"the metrics sink {name!r} needs a package: pip install '.[track]' in fastrl's clone")


class TensorBoardSink:
    """Event files under `tensorboard/`; a resumed run tells the viewer to forget what came after its checkpoint."""

    def __init__(self, folder: Path, config: dict, resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)
        if resume_step is None:
            self._writer.add_text("config", f"```\n{json.dumps(config, indent=2, default=str)}\n```", 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class TrackedSink:
    """A run of a tracker whose interface is wandb's."""

    _run: Any

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class WandbSink(TrackedSink):
    """A wandb run named after the folder, written under `wandb/`; a resumed run continues it by the id in `run_id`.

    WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY and the like act as wandb documents them.
    """

    def __init__(self, folder: Path, config: dict, resume_step: int | None) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fastrl"),
            name=folder.name,
            id=os.environ.get("WANDB_RUN_ID") or _run_id(folder),
            resume="allow",
            dir=folder,
            config=config,
        )


class TrackioSink(TrackedSink):
    """A run of the trackio project `fastrl`, in trackio's own local database, named by the folder and its `run_id`.

    TRACKIO_DIR, TRACKIO_SPACE_ID and the like act as trackio documents them. A step that a resumed run repeats is there
    twice.
    """

    def __init__(self, folder: Path, config: dict, resume_step: int | None) -> None:
        import trackio

        name = f"{folder.name}-{_run_id(folder)}"
        self._run = trackio.init(project="fastrl", name=name, config=config, resume="allow")


def _run_id(folder: Path) -> str:
    """A random name for the run, kept in the folder so that a resumed run finds it."""
    path = folder / "run_id"
    if not path.exists():
        write_file(path, secrets.token_hex(4))
    return path.read_text()


SINKS = {"tensorboard": TensorBoardSink, "wandb": WandbSink, "trackio": TrackioSink}
