"""From problems to prompt tokens and from completions to text: the one place where the tokenizer is asked."""

import warnings
from collections.abc import Collection

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fastrl.rollouts import Rollouts
from fastrl.tasks import Problem, Task
from fastrl.tasks.templates import chat_messages, render


def prompt_ids(task: Task, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of the problem in the task's template, or in the model's own chat template where it is a chat.

    Special tokens in front (<bos>) are as the tokenizer adds them by itself; those that it adds behind (<eos>, <sep>)
    are taken off: nothing could follow them. ValueError for a prompt without tokens, and for a chat template that fails
    or ends a turn without opening the assistant's.
    """
    if task.template == "chat" or not isinstance(problem.prompt, str):
        ids = _chat_ids(task, problem, tokenizer)
    else:
        ids = text_ids(render(task.template, problem.prompt, task.instruction, task.system_prompt), tokenizer)
    if not ids:
        raise ValueError(f"problem {problem.where or problem.id}: the prompt {problem.prompt!r:.80} has no tokens")
    return ids


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a text that is continued: special tokens in front of it, none behind."""
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
    where = problem.where or problem.id
    messages = chat_messages(problem.prompt, task.instruction, task.system_prompt)
    try:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        if tokenizer.chat_template is None and not isinstance(problem.prompt, str):
            raise ValueError(
                f"problem {where} is a chat of messages, and the tokenizer of the model has no chat template: give it "
                "one (chat_template in tokenizer_config.json), or prompts that are texts"
            ) from None
        raise ValueError(
            f"the tokenizer's chat template cannot render problem {where} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); for prompts that are texts another "
            "task.template does without it"
        ) from error
    if next((i for i in reversed(ids) if tokenizer.decode([i]).strip()), None) == tokenizer.eos_token_id:
        raise ValueError(
            f"the tokenizer's chat template ends problem {where} with {tokenizer.eos_token!r}, so that there is "
            "nothing to complete: it must open the assistant's turn (add_generation_prompt); another task.template "
            "does without it"
        )
    return list(ids)


def completion_texts(
    tokenizer: PreTrainedTokenizerBase, rollouts: Rollouts, end_ids: Collection[int] | None = None
) -> list[str]:
    """What the verifier sees: completions without the stop token that ended them, other special tokens included.

    end_ids: the tokens that are such; the last of another belongs to a stop text, which stays. None: any is. Of
    conversations all of it, turns and replies.
    """
    is_cut_R = rollouts.is_truncated_R | (rollouts.turns_N is not None)
    kept = [rollouts.completion(i).tolist() for i in range(len(rollouts))]
    for ids, is_cut in zip(kept, is_cut_R.tolist(), strict=True):
        if ids and not is_cut and (end_ids is None or ids[-1] in end_ids):
            ids.pop()
    return tokenizer.batch_decode(kept, skip_special_tokens=False) if kept else []  # transformers gives [""] for none
