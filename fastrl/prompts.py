"""From problems to prompt tokens and from completions to text: the one place where the tokenizer is asked."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fastrl.rollouts import Rollout
from fastrl.seeds import seed_of
from fastrl.tasks import Problem, Task
from fastrl.tasks.templates import chat_messages, render

MAX_CHARACTERS_PER_TOKEN = 32  # of a whole prompt, on average: longer text is not tokenised to see that it is too long


def prompt_ids(task: Task, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of the problem in the task's template, or in the model's own chat template where it is a chat.

    Special tokens in front (<bos>) are as the tokenizer adds them by itself; those that it adds behind (<eos>, <sep>)
    are taken off: nothing could follow them. ValueError for a prompt without tokens, and for a chat template that fails
    or ends a turn without opening the assistant's.
    """
    if task.template == "chat" or not isinstance(problem.prompt, str):
        ids = _chat_ids(task, problem, tokenizer)
    else:
        ids = _text_ids(render(task.template, problem.prompt, task.instruction), tokenizer)
    if not ids:
        raise ValueError(f"problem {problem.where or problem.id}: the prompt {problem.prompt!r:.80} has no tokens")
    return ids


def _text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids, specials = list(tokenizer(text).input_ids), set(tokenizer.all_special_ids)
    num_added = 0
    while num_added < len(ids) and ids[-1 - num_added] in specials:
        num_added += 1
    if num_added and (own := tokenizer(text, add_special_tokens=False).input_ids):
        while own and own[-1] in specials and own[-1] != tokenizer.eos_token_id:  # the template's own words
            own.pop()
            num_added -= 1
    if num_added <= 0:
        return ids
    added = tokenizer.convert_ids_to_tokens(ids[-num_added:])
    warnings.warn(
        f"prompts end in {' '.join(added)!r}, which the tokenizer or the template puts there: it is taken off, or "
        "every completion would follow an ended text",
        stacklevel=3,
    )
    return ids[:-num_added]


def _chat_ids(task: Task, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    messages, where = chat_messages(problem.prompt, task.instruction), problem.where or problem.id
    try:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the tokenizer's chat template cannot render problem {where} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); another task.template does without it"
        ) from error
    if next((i for i in reversed(ids) if tokenizer.decode([i]).strip()), None) == tokenizer.eos_token_id:
        raise ValueError(
            f"the tokenizer's chat template ends problem {where} with {tokenizer.eos_token!r}, so that there is "
            "nothing to complete: it must open the assistant's turn (add_generation_prompt); another task.template "
            "does without it"
        )
    return list(ids)


def completion_texts(tokenizer: PreTrainedTokenizerBase, rollouts: Sequence[Rollout]) -> list[str]:
    """What the verifier sees: completions without the stop token that ended them, other special tokens included."""
    kept = [r.completion_ids if r.is_truncated else r.completion_ids[:-1] for r in rollouts]
    return tokenizer.batch_decode(kept, skip_special_tokens=False) if kept else []  # transformers gives [""] for none


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
