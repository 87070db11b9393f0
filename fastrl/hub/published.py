"""What is published: a checkpoint of a run, its files, and the evaluations that are about just these weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrl.config.files import load_config
from fastrl.config.schema import TrainConfig
from fastrl.evaluation.results import load_evaluation
from fastrl.records.checkpoints import MANIFEST, STATE, defect, list_steps, load_state

CONFIG = "config.toml"
OWN = {MANIFEST, STATE, "README.md"}  # files beside the model: of a resumed run, and a card, which is written anew


@dataclass(frozen=True)
class Published:
    """A sound checkpoint and its run. evaluations: by name."""

    run: Path
    checkpoint: Path
    config: TrainConfig
    step: int
    evaluations: dict[str, dict]

    @property
    def is_adapter(self) -> bool:
        return (self.checkpoint / "adapter_config.json").exists()

    def files(self) -> list[Path]:
        """Of the model and its tokenizer; not those that only a resumed run needs."""
        return sorted(path for path in self.checkpoint.iterdir() if path.name not in OWN and path.is_file())


def find_published(path: Path, more: Sequence[Path] = ()) -> Published:
    """The checkpoint at `path`, or the newest sound one of the run at `path`.

    more: files of `fastrl eval` on this very checkpoint; evaluations in the run's folder count where their step is the
    checkpoint's. ValueError where there is no such checkpoint, where it is damaged, or where one of `more` is about
    another model; FileNotFoundError where no path is.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}: expected a run's folder, or one of its checkpoints")
    run, checkpoint = (path, _newest(path)) if (path / CONFIG).exists() else (path.absolute().parent.parent, path)
    if not (run / CONFIG).exists():
        raise ValueError(f"{path} is neither a run's folder nor one of its checkpoints: there is no {run / CONFIG}")
    if problem := defect(checkpoint):
        raise ValueError(f"{checkpoint} is damaged: {problem}")
    step = load_state(checkpoint)["step"]
    found = {file.stem: load_evaluation(file) for file in sorted((run / "eval").glob("*.json"))}
    evaluations = {name: one for name, one in found.items() if one.get("step") == step}
    evaluations |= {file.stem: _of_these(load_evaluation(file), file, checkpoint) for file in more}
    return Published(run, checkpoint, load_config(TrainConfig, run / CONFIG), step, evaluations)


def _newest(run: Path) -> Path:
    sound = [checkpoint for checkpoint in list_steps(run / "checkpoints") if defect(checkpoint) is None]
    if not sound:
        raise ValueError(f"{run} has no sound checkpoint yet: the first is written after run.checkpoint_every steps")
    return max(sound)


def _of_these(evaluation: dict, file: Path, checkpoint: Path) -> dict:
    model = evaluation.get("model", "")
    if not model or Path(model).resolve() != checkpoint.resolve():
        raise ValueError(f"{file} evaluates {model or 'a step of a run'!r}, not {checkpoint}")
    return evaluation
