"""One rollout, or one completion of an evaluation, as it is shown: token by token, and of a bounded size."""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from fastrl.evaluation.kept import prompt_text

NUM_TOKENS, NUM_CHARS, NUM_PROMPT_CHARS = 20_000, 200_000, 50_000
DIGITS = 5  # as the files
MOST_LINES = 1 << 20  # of a file
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    zlib.error,
)  # a file that is not ours
PLAIN = ("penalty", "reason", "advantage", "finish_reason", "group", "weight_version")


def rollout_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.jsonl.gz"


def rollout_files(folder: Path) -> dict[int, Path]:
    """By step, in order; files of other names, such as copies, are not the run's."""
    found = [
        (path.name.removeprefix("step-").removesuffix(".jsonl.gz"), path) for path in folder.glob("step-*.jsonl.gz")
    ]
    steps = [(int(name), path) for name, path in found if name.isascii() and name.isdigit() and len(name) < 10]
    return {step: path for step, path in sorted(steps) if path == rollout_file(folder, step)}


def rollout_rows(path: Path) -> Iterator[dict]:
    """Line by line; what cannot be read raises one of BROKEN."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, islice(lines, MOST_LINES))


def shown(row: dict, num_tokens: int = NUM_TOKENS, num_chars: int = NUM_CHARS) -> dict:
    """A line of a rollout file for the page.

    pieces: texts of the first tokens, the whole completion as one where the file has none. credits, change (of the
    log-prob by the update), gap (trainer − sampler), logprobs, entropy: per piece, or null where they are unknown.
    num_tokens, num_chars: of the completion, beyond which it is cut; its whole size is `tokens` and `characters`.
    """
    ids, text = row.get("completion_ids") or [], row.get("completion") or ""
    pieces = row.get("pieces") or [text]
    count = _first_pieces(pieces, num_tokens, num_chars)
    trainer, prompt = row.get("trainer_logprobs"), prompt_text(row.get("prompt"))
    credits = row.get("credits")
    if credits is None and row.get("advantage") is not None:
        credits = [row["advantage"]] * len(pieces)
    columns = {
        "credits": credits,
        "change": _minus(row.get("updated_logprobs"), trainer),
        "gap": _minus(trainer, row.get("sampler_logprobs")),
        "logprobs": trainer,
        "entropy": row.get("entropy"),
        "turns": row.get("turns"),
    }
    has_pieces = bool(row.get("pieces"))
    return {
        "problem_id": str(row.get("problem_id")),
        "reward": reward_of(row),
        "rewards": dict(row.get("rewards") or {}),
        **{name: row.get(name) for name in PLAIN},
        "prompt": prompt[:NUM_PROMPT_CHARS],
        "prompt_characters": len(prompt),
        "pieces": [piece[:num_chars] for piece in pieces[:count]],
        "tokens": len(ids),
        "characters": len(text),
        "is_cut": count < len(pieces) or len(pieces[0]) > num_chars,
        **{name: _rounded(c[:count]) if c and has_pieces else None for name, c in columns.items()},
    }


def _first_pieces(pieces: Sequence[str], num_tokens: int, num_chars: int) -> int:
    """How many of the first pieces are within both limits; one at least."""
    total = 0
    for number, piece in enumerate(pieces[:num_tokens]):
        total += len(piece)
        if total > num_chars:
            return max(1, number)
    return min(len(pieces), num_tokens)


def _minus(first: list | None, second: list | None) -> list | None:
    if first is None or second is None or len(first) != len(second):
        return None
    return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]


def _rounded(values: Sequence) -> list:
    return [value if value is None else round(value, DIGITS) for value in values]


def reward_of(row: dict) -> float | None:
    return None if row.get("reward") is None else float(row["reward"])


def mean_credit(row: dict) -> float | None:
    """Of the model's own tokens, of those where it is a number."""
    if row.get("advantage") is not None:
        return row["advantage"]
    credits, turns = row.get("credits") or [], row.get("turns")
    own = [c for i, c in enumerate(credits) if c is not None and (not turns or turns[i] > 0)]
    return sum(own) / len(own) if own else None
