r"""Prompt templates: how a question becomes the text that the model continues.

`qwen`, `qwen3-no-thinking`, `llama` and `simple` are the texts of the NSR authors' code (arXiv:2506.01347): applied as
raw text, not through the tokenizer's chat template. `none` is the question itself. `chat` is the model's own chat
template, which only its tokenizer can render: see `chat_messages`. The Llama text leaves out `<|begin_of_text|>`, which
that tokenizer adds by itself.
"""

from .problem import Prompt

SYSTEM_PROMPT = "You are a helpful assistant."  # what the NSR authors' code says
_CHATML = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n"

TEMPLATES = {
    "none": "{question}",
    "qwen": _CHATML,
    "qwen3-no-thinking": _CHATML + "<think>\n\n</think>\n",
    "llama": (
        "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{input}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "simple": "Question:\n{question}\nAnswer:\nLet's think step by step.\n",
}

# How a reply of an environment is put between two turns of the model; {reply} comes with no special token of its own.
_CHATML_REPLY = "<|im_end|>\n<|im_start|>user\n{reply}<|im_end|>\n<|im_start|>assistant\n"
REPLIES = {
    "none": "{reply}",
    "qwen": _CHATML_REPLY,
    "qwen3-no-thinking": _CHATML_REPLY + "<think>\n\n</think>\n",
    "llama": (
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{reply}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "simple": "{reply}",
}

MATH_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def has_system_prompt(template: str) -> bool:
    """Whether a system prompt has a place in it: not in `none` and `simple`."""
    return template == "chat" or "{system}" in TEMPLATES[template]


def render(template: str, question: str, instruction: str = MATH_INSTRUCTION, system_prompt: str = "") -> str:
    """The prompt's text; `none` and `simple` leave the instruction out. ValueError for `chat`, which has no text.

    system_prompt: instead of "You are a helpful assistant.", where the template has a place for one; empty: that.
    """
    if template not in TEMPLATES:
        raise ValueError(f"template {template!r} has no text; expected one of {sorted(TEMPLATES)}")
    # One replacement only, the question last: the texts themselves may contain braces.
    before, place, behind = TEMPLATES[template].partition("{system}")
    text = behind if place else before
    head = before + (system_prompt or SYSTEM_PROMPT) if place else ""
    return head + _filled(text, question, instruction)


def _filled(text: str, question: str, instruction: str) -> str:
    if "{input}" in text:
        return text.replace("{input}", _instructed(question, instruction), 1)
    return text.replace("{question}", question, 1)


def chat_messages(prompt: Prompt, instruction: str = MATH_INSTRUCTION, system_prompt: str = "") -> list[dict[str, str]]:
    """The conversation for `tokenizer.apply_chat_template(..., add_generation_prompt=True)`.

    A question becomes one message of the user. Where the prompt is a list of messages, the instruction is appended to
    the last one. system_prompt: said first; messages that begin with a system message of their own keep that one.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    *before, last = messages
    said = [{"role": "system", "content": system_prompt}] if system_prompt and messages[0]["role"] != "system" else []
    return [*said, *before, last | {"content": _instructed(last["content"], instruction)}]


def _instructed(question: str, instruction: str) -> str:
    return f"{question}\n{instruction}" if instruction else question
