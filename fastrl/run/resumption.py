"""Where a run begins: at its newest sound checkpoint, if what it reads is still what it was, or at the start."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fastrl.process.ranks import Ranks
from fastrl.records import checkpoints
from fastrl.records.changes import schedule_change
from fastrl.records.fingerprints import changed
from fastrl.run.preflight import Preflight


@dataclass(frozen=True)
class Beginning:
    """A checkpoint with its state; neither for a run from the start."""

    checkpoint: Path | None = None
    state: dict = field(default_factory=dict)

    @property
    def step(self) -> int:
        return self.state.get("step", 0)


def resumption(ready: Preflight, ranks: Ranks, say: Callable[[str], None], *, accepts_changes: bool) -> Beginning:
    """The newest sound checkpoint of the run's folder, and through `say` what is not as it was.

    ValueError where more steps are done than are asked for, and for changed inputs unless accepts_changes. Collective.
    """
    checkpoint = checkpoints.latest_sound(ready.folder.checkpoints, say, ranks)
    say(f"resuming from {checkpoint or 'the start: there is no checkpoint yet'}")
    if checkpoint is None:
        return Beginning()
    beginning = Beginning(checkpoint, checkpoints.load_state(checkpoint))
    ranks.on_main(lambda: _check(ready, beginning, say, accepts_changes))
    return beginning


def _check(ready: Preflight, beginning: Beginning, say: Callable[[str], None], accepts_changes: bool) -> None:
    num_steps = ready.config.run.num_steps
    if num_steps < beginning.step:
        raise ValueError(f"run.num_steps = {num_steps}, but {beginning.step} steps are done: it must be at least that")
    if changes := changed(beginning.state.get("inputs", {}), ready.inputs):
        told = f"{beginning.checkpoint} was made with other inputs: {'; '.join(changes)}"
        if not accepts_changes:
            raise ValueError(f"{told}. Bring them back, or go on with the new ones: --resume --accept-changes")
        say(f"{told}. The run goes on with the new ones")
    if ready.folder.previous and (notice := schedule_change(ready.folder.previous, ready.config, beginning.step)):
        say(notice)
