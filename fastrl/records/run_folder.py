"""The run folder: one config and one owner at a time, and no files but its own.

config.toml · metrics.jsonl · tensorboard/ · rollouts/step-NNNNNN.jsonl.gz · checkpoints/ · eval/*.json,
eval/*.completions.jsonl.gz · report.html, and of a resumed run *.dropped.jsonl · dropped/
"""

from pathlib import Path

from fastrl.config.files import load_config, to_toml
from fastrl.config.schema import TrainConfig
from fastrl.records.changes import differences
from fastrl.records.durable import make_folder, write_file
from fastrl.records.lock import Lock
from fastrl.records.place import check_place

LOCK = ".lock"
OF_A_START = {LOCK, ".config.toml.draft"}  # what a run that died before it had a config leaves


class RunFolder:
    """Claims an existing folder and checks it. Writes nothing but a lock, which the main rank holds until `close`.

    ValueError when the folder is not a run's, another process runs there, it holds another config, or it holds a run
    and is_resumed is False. previous: the config that was found.
    """

    def __init__(self, config: TrainConfig, *, is_resumed: bool, is_main: bool = True):
        self.config, self.path = config, Path(config.run.folder)
        self.checkpoints, self.evaluations = self.path / "checkpoints", self.path / "eval"
        self.previous: TrainConfig | None = None
        self._config_path = self.path / "config.toml"
        self._lock: Lock | None = None
        has_run = self._config_path.exists()
        check_place(self.path, "run.folder", allowed=None if has_run else OF_A_START)
        if is_main and self.path.is_dir():
            self._claim()
        try:
            self._check_config(is_resumed)
        except (ValueError, OSError):
            self.close()
            raise

    def _claim(self) -> None:
        self._lock = Lock(self.path / LOCK, f"run.folder = '{self.path}'")

    def _check_config(self, is_resumed: bool) -> None:
        if not self._config_path.exists():
            return
        self.previous = load_config(TrainConfig, self._config_path)
        if found := differences(self.previous, self.config):
            raise ValueError(f"{self.path} holds a run with another config: {'; '.join(found)}")
        if not is_resumed:
            raise ValueError(
                f"{self.path} already holds this run; continue it with --resume, in Python resume=True, or choose "
                "run.folder"
            )

    def create(self) -> None:
        """Make the folder if need be, and save the resolved config. ValueError if another process was faster."""
        if not self._lock:
            make_folder(self.path)
            self._claim()
            if self._config_path.exists():
                raise ValueError(f"another process has begun a run in {self.path} meanwhile")
        write_file(self._config_path, to_toml(self.config))

    def close(self) -> None:
        """Release the lock."""
        if self._lock:
            self._lock.close()
