"""Whether prompts and completions fit: the longest sequence to come, against every limit that it meets."""

from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from fastrl.prompts import extent_of
from fastrl.tasks import Problem, Task


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
