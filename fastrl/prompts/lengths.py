"""Whether prompts and completions fit: the longest sequence to come, against every limit that it meets."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from fastrl.prompts.tokens import prompt_ids
from fastrl.tasks import Problem, Task

MAX_CHARACTERS_PER_TOKEN = 32  # of a whole prompt, on average: longer text is not tokenised to see that it is too long


@dataclass(frozen=True)
class Extent:
    """Of some prompts: tokens of the longest and where it is, and the largest token id. Zeros without problems."""

    num_tokens: int = 0
    where: str = ""
    largest_id: int = -1


def extent_of(
    task: Task, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, limit: int | None = None
) -> Extent:
    """Looks at every prompt. limit: tokens that one may have, if there is a limit. ValueError for much longer text."""
    extent = Extent()
    for problem in problems:
        if is_hopeless(problem, limit):
            raise ValueError(
                f"the prompt of {problem.where or problem.id} has {num_characters(problem)} characters, which cannot "
                f"be {limit} tokens or fewer: {str(problem.prompt)[:60]!r}…; task.max_prompt_tokens drops such rows"
            )
        ids = prompt_ids(task, problem, tokenizer)
        if len(ids) > extent.num_tokens:
            extent = replace(extent, num_tokens=len(ids), where=problem.where or problem.id)
        extent = replace(extent, largest_id=max(extent.largest_id, *ids))
    return extent


def num_characters(problem: Problem) -> int:
    parts = [problem.prompt] if isinstance(problem.prompt, str) else [m["content"] for m in problem.prompt]
    return sum(map(len, parts))


def is_hopeless(problem: Problem, limit: int | None) -> bool:
    """So long that its tokens need not be counted."""
    return limit is not None and num_characters(problem) > MAX_CHARACTERS_PER_TOKEN * limit


def without_overlong(task: Task, tokenizer: PreTrainedTokenizerBase, limit: int) -> Task:
    """The task without problems whose prompts are longer than `limit` tokens, with a warning that counts them; 0: all.

    ValueError where a split is left without any.
    """
    if not limit:
        return task
    kept = {}
    for split in ("train", "validation", "test"):
        problems = getattr(task, split)
        short = [p for p in problems if not is_hopeless(p, limit) and len(prompt_ids(task, p, tokenizer)) <= limit]
        if len(short) < len(problems):
            said = f"{split}: {len(problems) - len(short)} of {len(problems)} problems have prompts of more than "
            if not short:
                raise ValueError(f"{said}task.max_prompt_tokens = {limit} tokens: none is left")
            warnings.warn(f"{said}task.max_prompt_tokens = {limit} tokens and are dropped", stacklevel=2)
        kept[split] = short
    return replace(task, **kept)


def longest_sequence(
    task: Task,
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    architecture: PreTrainedConfig,
    limits: dict[str, int],
    *,
    use: str,
    setting: str,
    new: int,
) -> int:
    """Tokens of the longest prompt of these problems and `new` ones.

    limits: by name, in tokens. use and setting: what the sequences are for, and what says how many new tokens they get.
    ValueError naming the prompt that does not fit, or a token id that the model has no embedding for.
    """
    extent = extent_of(task, problems, tokenizer, min(limits.values(), default=None))
    for name, limit in limits.items():
        if extent.num_tokens and extent.num_tokens + new > limit:
            raise ValueError(
                f"the longest {use} prompt ({extent.num_tokens} tokens, {extent.where}) and {setting} make "
                f"{extent.num_tokens + new} tokens, more than {name}={limit}; task.max_prompt_tokens drops longer ones"
            )
    num_embedded = architecture.get_text_config().vocab_size
    if extent.largest_id >= num_embedded:
        raise ValueError(
            f"the {use} prompts hold token {extent.largest_id}, "
            f"{tokenizer.convert_ids_to_tokens(extent.largest_id)!r}, and the model embeds {num_embedded}: "
            "tokens were added to the tokenizer and not to the model"
        )
    return extent.num_tokens + new
