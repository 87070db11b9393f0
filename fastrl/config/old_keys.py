"""Keys of earlier versions. They are refused, with the name that each has now."""

from collections.abc import Iterable
from typing import Any

RENAMED = {
    "algorithm.positive_weight": "algorithm.w_reinforce.positive_weight",
    "algorithm.clip_low": "algorithm.ppo_clip.low",
    "algorithm.clip_high": "algorithm.ppo_clip.high",
    "algorithm.dual_clip": "algorithm.ppo_clip.dual",
    "algorithm.cispo_cap": "algorithm.cispo.cap",
    "algorithm.importance": "algorithm.importance.kind",
    "algorithm.importance_cap": "algorithm.importance.cap",
    "algorithm.overlong_buffer": "algorithm.overlong.buffer",
    "algorithm.overlong_penalty": "algorithm.overlong.penalty",
}


def refuse_old_keys(data: dict[str, Any]) -> None:
    """ValueError that names all old keys in nested dicts. One that is a section by now is old where it has a value."""
    sections = {name: section for name, section in data.items() if isinstance(section, dict)}
    values = ((f"{name}.{key}", value) for name, section in sections.items() for key, value in section.items())
    _refuse(name for name, value in values if not isinstance(value, dict))


def refuse_old_flags(arguments: Iterable[str]) -> None:
    """ValueError that names all old keys among command-line arguments."""
    flags = (argument for argument in arguments if argument.startswith("--"))
    _refuse(flag[2:].partition("=")[0].replace("-", "_") for flag in flags)


def _refuse(names: Iterable[str]) -> None:
    found = [f"{name} is now {RENAMED[name]}" for name in dict.fromkeys(names) if name in RENAMED]
    if found:
        raise ValueError(f"settings to rename: {', '.join(found)}")
