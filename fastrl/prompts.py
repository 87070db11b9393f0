"""From problems to prompt tokens and from completions to text: the one place where the tokenizer is asked."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from fastrl.rollouts import Rollout
from fastrl.seeds import seed_of
from fastrl.tasks import Problem, Task
from fastrl.tasks.templates import chat_messages, render


def prompt_ids(task: Task, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of the problem in the task's template, or in the model's own chat template where it is a chat.

    Special tokens (<bos>) as the tokenizer adds them by itself.
    """
    if task.template == "chat" or not isinstance(problem.prompt, str):
        messages = chat_messages(problem.prompt, task.instruction)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        ids = tokenizer(render(task.template, problem.prompt, task.instruction)).input_ids
    if not ids:
        raise ValueError(f"problem {problem.id}: the prompt {problem.prompt!r} has no tokens")
    return list(ids)


def completion_texts(tokenizer: PreTrainedTokenizerBase, rollouts: Sequence[Rollout]) -> list[str]:
    """What the verifier sees: completions without the stop token that ended them, other special tokens included."""
    kept = [r.completion_ids if r.is_truncated else r.completion_ids[:-1] for r in rollouts]
    return tokenizer.batch_decode(kept, skip_special_tokens=False)


def longest_prompt(task: Task, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest prompt; 0 without problems."""
    return max((len(prompt_ids(task, p, tokenizer)) for p in problems), default=0)


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
