"""A folder to begin with: config.toml and, for a reward of one's own, reward.py and rows of data, which run."""

import json
from dataclasses import dataclass
from pathlib import Path

from fastrl.config.annotations import nearest
from fastrl.learning.objectives import OBJECTIVES
from fastrl.records.durable import write_file
from fastrl.tasks import find_kind

OWN = "own"
OWN_NAME = "reward:reward"

REWARD = '''"""The reward: 1 for what is right, 0 for anything else. Change it to yours."""

import re


def reward(prompt: str, completion: str, *, answer: str, **row: object) -> float:
    """Whether the first number of the completion is the `answer` of the row; each field of a row is an argument."""
    number = re.search(r"-?[0-9]+", completion)
    return float(number is not None and number.group() == str(answer))
'''

CONFIG = """# Made by fastrl init. In this folder:
#
#     fastrl train config.toml             # any setting can follow: --optimizer.lr 1e-5
#     fastrl train config.toml --resume    # goes on from the last checkpoint
#     fastrl eval config.toml --model.path run/checkpoints/step-000020
#     fastrl plan config.toml              # the memory that it takes, before anything is loaded
#
# fastrl settings explains every setting.

[model]
path = {model}

[task]
name = {task}
{data}
[sampler]
max_new_tokens = {max_new_tokens}  # a completion that is cut counts as wrong
batch_size = 64

[algorithm]
objective = {objective}  # fastrl train --help-all lists them

[optimizer]
lr = 1e-6

[batch]
prompts_per_step = 8
rollouts_per_prompt = 8
micro_batch_tokens = 8192

[evaluation]
at_end = {at_end}  # pass@k of the test split, when training ends
num_samples = 16

[run]
folder = "run"
num_steps = 20
checkpoint_every = 10
"""


@dataclass(frozen=True)
class Starter:
    """What a folder is to begin with.

    model: folder or hub id. task: `own`, or the name of a task. train: JSON lines or a hub dataset; empty: a few rows
    are written where the task makes none itself. objective: how rewards become credit.
    """

    folder: Path
    model: str
    task: str
    train: str
    objective: str

    def check(self) -> None:
        """ValueError for a task or an objective that there is not."""
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective = {self.objective!r} is unknown{nearest(self.objective, OBJECTIVES)}")
        if self.task != OWN:
            find_kind(self.task)

    @property
    def is_own(self) -> bool:
        return self.task == OWN

    @property
    def needs_rows(self) -> bool:
        """Whether data has to be written: none is given and the task makes none."""
        return not self.train and (self.is_own or find_kind(self.task).generate is None)

    def files(self) -> dict[str, str]:
        """Name → text of the files of the folder."""
        found = {"config.toml": self._config()}
        if self.is_own:
            found["reward.py"] = REWARD
        if self.needs_rows:
            found |= {"train.jsonl": self._rows(range(2, 50)), "test.jsonl": self._rows(range(50, 70))}
        return found

    def _config(self) -> str:
        sources = {"train": _from_inside(self.train)}
        if self.needs_rows:
            sources = {"train": "train.jsonl", "test": "test.jsonl"}
        return CONFIG.format(
            model=_toml(_from_inside(self.model)),
            task=_toml(OWN_NAME if self.is_own else self.task),
            data="".join(f"{split} = {_toml(source)}\n" for split, source in sources.items() if source),
            max_new_tokens=16 if self.is_own and self.needs_rows else 1024,
            objective=_toml(self.objective),
            at_end=str(self.needs_rows or not self.train).lower(),
        )

    def _rows(self, numbers: range) -> str:
        prompt, question = ("prompt", "{}+{}=") if self.is_own else ("problem", "What is {} + {}?")
        pairs = ((n, 3 * n % 17 + 1) for n in numbers)
        rows = ({prompt: question.format(a, b), "answer": str(a + b)} for a, b in pairs)
        return "".join(json.dumps(row) + "\n" for row in rows)


def write_starter(starter: Starter, force: bool = False) -> list[Path]:
    """Write the folder's files, all or none. ValueError for bad answers, FileExistsError where one is there already."""
    starter.check()
    files = {starter.folder / name: text for name, text in starter.files().items()}
    there = [str(path) for path in files if path.exists()]
    if there and not force:
        raise FileExistsError(f"{', '.join(there)}: there already, and kept; --force writes it anew")
    starter.folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        write_file(path, text)
    return list(files)


def _from_inside(source: str) -> str:
    """A path that exists, as absolute: commands run inside the folder. Anything else is a name of the hub."""
    path = Path(source).expanduser()
    return str(path.absolute()) if source and path.exists() else source


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
