"""Fingerprints of what a run reads besides its config: a resumed run compares them and names what has changed.

They cover the problems of the splits in use, the reward, the tokenizer, the weights of models that signals need, and
those of model.path where they are needed to the end (as the base of adapters or the reference of a KL penalty). A
fingerprint is a short text; equal content gives equal text.
"""

import ast
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fastrl.config.schema import TaskConfig, TrainConfig
from fastrl.policy.pretrained import Pretrained
from fastrl.records.callables import content, module_of
from fastrl.records.checkpoints import checksums
from fastrl.tasks import Problem, Task, find_kind
from fastrl.tasks.choose import BRIDGES, TASKS
from fastrl.tasks.custom import home_of
from fastrl.tasks.given import GivenReward
from fastrl.tasks.reward_rules import AS_IT_IS

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "config.json")
INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def fingerprints(config: TrainConfig, task: Task, base: Pretrained, others: Mapping[str, Pretrained]) -> dict[str, str]:
    """Fingerprint by name of the input. others: the models that signals need, by role."""
    found = {f"the {split} problems": _problems(getattr(task, split)) for split in _splits(config)}
    found["the reward"] = _reward(config.task.name, config.task, task.reward)
    for name, one in zip(_added(config.task), task.summed[1:], strict=True):
        found[f"the reward {name}"] = _reward(name, config.task, one.reward)
    found["the tokenizer"] = _tokenizer(base.tokenizer)
    if config.model.lora_rank or config.algorithm.kl_coef:
        found["the base weights"] = _weights(base)
    return found | {f"the {role}": _weights(other) for role, other in others.items()}


def changed(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """One text, with both fingerprints, for each input that both runs have and that differs."""
    return [f"{name} ({then[name]}; now {now[name]})" for name in now if then.get(name, now[name]) != now[name]]


def _splits(config: TrainConfig) -> list[str]:
    splits = {"train"} | ({"validation"} if config.evaluation.every or config.ledger.every else set())
    return sorted(splits | ({config.evaluation.split} if config.evaluation.at_end else set()))


def _digest(parts: Iterable[str | bytes]) -> str:
    """The first 64 bits of the SHA-256 of texts in their order."""
    total = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()[:16]


def _problems(problems: Sequence[Problem]) -> str:
    lines = (json.dumps([p.prompt, p.row], sort_keys=True, default=_plain) for p in problems)
    return f"{len(problems)} problems, {_digest(lines)}"


def _plain(value: object) -> object:
    """What JSON has no type for, the same in every process."""
    return sorted(map(repr, value)) if isinstance(value, set | frozenset) else repr(value)


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend else sorted(tokenizer.get_vocab().items())
    if backend:
        rules |= {"padding": None, "truncation": None}  # set by calls
    return _digest([json.dumps(rules, sort_keys=True), json.dumps([tokenizer.chat_template, tokenizer.eos_token_id])])


def _weights(base: Pretrained) -> str:
    """For a folder a digest of its files; for a hub id the commit, whose files cannot change."""
    folder = Path(base.path)
    if not folder.is_dir():
        return f"{folder} at {base.architecture._commit_hash}"
    sums = checksums(folder, {path for pattern in WEIGHTS for path in folder.glob(pattern)})
    return _digest(f"{name} {value}" for name, value in sorted(sums.items()))


def _added(task: TaskConfig) -> list[str]:
    """What task.rewards adds to the task's own reward."""
    return [name for name in task.rewards if name != AS_IT_IS]


def _reward(name: str, task: TaskConfig, reward: object) -> str:
    """For a built-in reward the versions of its packages; for a user's own its source and what it imports beside it.
    An object that was given and cannot be imported has its `content`."""
    module, colon, _ = name.partition(":")
    if module + colon in TASKS | BRIDGES:
        kind = find_kind(name, task.reward_folder)
        versions = ", ".join(f"{package} {version(package)}" for package in ["fastrl", *kind.packages])
        return f"{versions}, {_source(kind.module, task.reward_folder)}" if kind.module else versions
    if isinstance(reward, GivenReward):
        module = module_of(reward.given)
        if not module or not _sources(module, home_of(module, task.reward_folder)):
            return f"{name}, {_digest(content(reward.given))}"
    return f"{name}, {_source(module, task.reward_folder)}"


def _source(module: str, folder: str) -> str:
    sources = sorted(_sources(module, home_of(module, folder)))
    return _digest(p.name.encode() + p.read_bytes() for p in sources)


def _sources(module: str, home: str) -> set[Path]:
    """The file of a module, or all of its package, and what they import from the same folder. Nothing is imported."""
    top = module.partition(".")[0]
    spec = PathFinder.find_spec(top, [home or os.getcwd(), *sys.path])
    spec = spec or find_spec(top)  # an editable install may have a finder of its own
    if spec is None or not (spec.has_location or spec.submodule_search_locations):  # built into Python
        return set()
    waiting = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin]]
    root, found = waiting[0].parent, set()
    while waiting:
        place = waiting.pop()
        new = (set(place.rglob("*.py")) if place.is_dir() else {place}) - found
        found |= new
        if root not in INSTALLED:
            names = {name for path in new for name in _imported(path)}
            waiting += [place for n in names for place in (root / f"{n}.py", root / n) if place.exists()]
    return found


def _imported(path: Path) -> Iterator[str]:
    """Top-level names of the modules that a file imports absolutely; none if it is not Python."""
    try:
        tree = ast.parse(path.read_bytes() if path.suffix == ".py" else b"")
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
