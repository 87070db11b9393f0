"""The order in which problems are trained on."""

from collections.abc import Sequence

from fastrl.process.seeds import seed_of
from fastrl.tasks import Problem


class PromptStream:
    """Endless shuffled epochs over problems. `position` counts problems taken so far and is all the state there is."""

    def __init__(self, problems: Sequence[Problem], seed: int, position: int = 0):
        if not problems:
            raise ValueError("there are no training problems")
        self.problems, self.seed, self.position = problems, seed, position
        self._epoch, self._order = -1, []

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems."""
        taken = []
        for position in range(self.position, self.position + count):
            epoch, index = divmod(position, len(self.problems))
            taken.append(self.problems[self._shuffled(epoch)[index]])
        self.position += count
        return taken

    def _shuffled(self, epoch: int) -> list[int]:
        if epoch != self._epoch:
            keys = [seed_of(self.seed, "order", epoch, i) for i in range(len(self.problems))]
            self._epoch, self._order = epoch, sorted(range(len(self.problems)), key=keys.__getitem__)
        return self._order
