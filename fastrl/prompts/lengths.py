"""Whether prompts and completions fit: the longest sequence to come, against every limit that it meets."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from fastrl.config.schema import SamplerConfig
from fastrl.policy.pretrained import Pretrained
from fastrl.prompts.tokens import prompt_ids
from fastrl.tasks import Problem, Task

MAX_CHARACTERS_PER_TOKEN = 32  # of a whole prompt, on average: longer text is not tokenised to see that it is too long


@dataclass(frozen=True)
class Extent:
    """Tokens of the longest of some prompts, where that prompt is, and the largest token id in any of them."""

    num_tokens: int = 0
    where: str = ""
    largest_id: int = -1


def extent_of(
    task: Task, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, limit: int | None = None
) -> Extent:
    """Tokenises every prompt. limit: the most tokens that one may have. ValueError for text that is much too long."""
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
    """Whether the prompt is so long that its tokens need not be counted."""
    return limit is not None and num_characters(problem) > MAX_CHARACTERS_PER_TOKEN * limit


def without_overlong(task: Task, tokenizer: PreTrainedTokenizerBase, limit: int) -> Task:
    """The task without the problems whose prompts are longer than `limit` tokens; 0 keeps all. Warns of those dropped.

    ValueError for a split that would be left empty.
    """
    if not limit:
        return task
    return replace(task, **{name: _short(task, name, tokenizer, limit) for name in ("train", "validation", "test")})


def _short(task: Task, split: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> Sequence[Problem]:
    problems = getattr(task, split)
    kept = [p for p in problems if not is_hopeless(p, limit) and len(prompt_ids(task, p, tokenizer)) <= limit]
    if len(kept) == len(problems):
        return kept
    said = f"{split}: {len(problems) - len(kept)} of {len(problems)} problems have prompts of more than "
    if not kept:
        raise ValueError(f"{said}task.max_prompt_tokens = {limit} tokens: none is left")
    warnings.warn(f"{said}task.max_prompt_tokens = {limit} tokens and are dropped", stacklevel=3)
    return kept


@dataclass(frozen=True)
class Completions:
    """What will follow the prompts: what for, the setting that says how long, and that number of tokens."""

    use: str
    setting: str
    num_tokens: int


def of_training(sampler: SamplerConfig) -> Completions:
    return Completions("training", f"sampler.max_new_tokens={sampler.max_new_tokens}", sampler.max_new_tokens)


def longest_sequence(
    task: Task, problems: Sequence[Problem], model: Pretrained, limits: dict[str, int], completions: Completions
) -> int:
    """Tokens of the longest prompt of these problems with a full completion.

    limits: tokens that this may be at most, by the limit's name. ValueError naming the prompt that does not fit, or a
    token that the model does not embed.
    """
    extent = extent_of(task, problems, model.tokenizer, min(limits.values(), default=None))
    total = extent.num_tokens + completions.num_tokens
    for name, limit in limits.items():
        if extent.num_tokens and total > limit:
            raise ValueError(
                f"the longest {completions.use} prompt ({extent.num_tokens} tokens, {extent.where}) and "
                f"{completions.setting} make {total} tokens, more than {name}={limit}; task.max_prompt_tokens drops "
                "longer ones"
            )
    _check_embedded(extent.largest_id, model, completions.use)
    return total


def _check_embedded(token_id: int, model: Pretrained, use: str) -> None:
    num_embedded = model.architecture.get_text_config().vocab_size
    if token_id >= num_embedded:
        raise ValueError(
            f"the {use} prompts hold token {token_id}, {model.tokenizer.convert_ids_to_tokens(token_id)!r}, and the "
            f"model embeds {num_embedded}: tokens were added to the tokenizer and not to the model"
        )
