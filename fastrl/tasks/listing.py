"""Which tasks there are, and what one looks like: a problem, its prompt, what its reward says."""

import importlib
import inspect
import json
import textwrap
from random import Random

from fastrl.config.schema import TaskConfig

from .choose import TASKS, load_task
from .gym import known_datasets
from .problem import Problem, Prompt, Task
from .templates import TEMPLATES, chat_messages, render
from .verifier.pool import VerifierPool
from .verifier.verdict import Verdict
from .verifier.worker import Call

OWN = {
    "<module>:<function>": "your reward over JSON lines: reward(prompt, completion, **row) -> float",
    "<module>:<class>": "your environment: reset(prompt, **row), step(text), score()",
    "verifiers:<taskset>": "an environment of the verifiers library; ?option=value sets fields of its TasksetConfig",
    "openenv:<module>:<app>": "an OpenEnv application, served in each verifier worker",
    "openenv:http://…": "an OpenEnv server that runs already",
}
WIDTH = 120


def list_text() -> str:
    """Every built-in task, reasoning-gym's datasets, and how to name what is yours."""
    built_in = {name: _summary(place) for name, place in TASKS.items() if not name.endswith(":")}
    try:
        datasets = sorted(known_datasets())
        names = textwrap.fill(" ".join(datasets), WIDTH, initial_indent="  ", subsequent_indent="  ")
        gym = f"reasoning-gym:<dataset>, {len(datasets)} of them\n\n{names}"
    except ValueError as error:
        gym = f"reasoning-gym:<dataset>\n\n  {error}"
    return (
        f"Built in\n\n{_table(built_in)}\n\n{gym}\n\nYours and others'\n\n{_table(OWN)}\n\n"
        "fastrl tasks NAME shows a problem of a task, its prompt, and what its reward makes of an answer.\n"
    )


def task_text(config: TaskConfig) -> str:
    """The first problem of the train split and what the reward, in a worker, makes of answers to it.

    ValueError or OSError as `load_task` raises them.
    """
    task = load_task(config, splits=("train",))
    problem = task.train[0]
    with VerifierPool(task.reward, timeout_s=config.timeout_s, memory_mb=config.memory_mb, num_workers=1) as pool:
        is_conversation = pool.unit() == "conversation"
        examples = _turns(task, problem, pool) if is_conversation else _answers(task, problem, pool)
    kind = "an environment: the model takes turns" if is_conversation else "a reward: the model answers once"
    row = json.dumps(problem.row, ensure_ascii=False, default=repr)
    return (
        f"{task.name}: {kind}\n\n"
        f"prompt, as template {task.template!r} puts it\n\n{_indented(prompt_text(task, problem.prompt))}\n\n"
        f"row, as the {'environment' if is_conversation else 'reward'} gets it\n\n"
        f"{_indented(textwrap.shorten(row, 1000, placeholder=' …'))}\n\n{examples}"
    )


def prompt_text(task: Task, prompt: Prompt) -> str:
    """What the model reads; of a chat the messages, which only a tokenizer can put into its own form."""
    if task.template in TEMPLATES and isinstance(prompt, str):
        return render(task.template, prompt, task.instruction)
    messages = chat_messages(prompt, task.instruction)
    return "\n".join(f"[{message['role']}] {message['content']}" for message in messages)


def _answers(task: Task, problem: Problem, pool: VerifierPool) -> str:
    texts = ["", *_known_answers(task, problem)]
    verdicts = dict(zip(texts, pool.score([(problem.prompt, text, problem.row) for text in texts]), strict=True))
    best = max(texts[1:], key=lambda text: verdicts[text].reward or 0.0, default=None)
    known = _judged("answer", best, verdicts[best]) if best is not None else "no answer is known\n\n"
    return known + _judged("answer", "", verdicts[""])


def _known_answers(task: Task, problem: Problem) -> list[str]:
    """What should be right, as it is and in the marks that rewards look for."""
    found = (problem.row.get(name) for name in ("entry", "task"))  # of reasoning-gym and verifiers
    nested = next((one["answer"] for one in found if isinstance(one, dict) and one.get("answer") is not None), None)
    try:
        answer = task.answer_of(problem) if nested is None else str(nested)
    except ValueError:
        return []
    return [answer, f"<answer>{answer}</answer>", f"\\boxed{{{answer}}}"]


def _turns(task: Task, problem: Problem, pool: VerifierPool) -> str:
    shown = ""
    if task.demonstrations:
        prompt, said = next(iter(task.demonstrations(Random(0), 1)))
        names = ("turn ", "reply")
        lines = "\n".join(f"{names[i % 2]}  {text}" for i, text in enumerate(said))
        shown = f"a conversation that goes well, about another problem\n\n{_indented(f'prompt {prompt}')}\n"
        shown += f"{_indented(lines)}\n\n"
    (verdict,) = pool.play([Call(problem.prompt, [""], problem.row)])
    reply = "the end" if getattr(verdict, "is_done", True) else repr(verdict.reply)
    return shown + _judged("turn", "", verdict) + f"  reply   {reply}\n"


def _judged(what: str, text: str, verdict: Verdict) -> str:
    said = f"no reward, a fault: {verdict.reason}" if verdict.is_fault else f"{verdict.reward:g} ({verdict.reason})"
    shown = repr(text) if not text or "\n" not in text else f"\n{_indented(text)}"
    return f"{what} {shown}\n  reward  {said}\n"


def _summary(place: str) -> str:
    """The first line of the docstring of a task's module."""
    module = importlib.import_module(place.partition(":")[0])
    return (inspect.getdoc(module) or "").partition("\n")[0]


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows)) + 2
    return "\n".join(f"  {name:{width}}{line}" for name, line in rows.items())


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ", lambda line: True)
