"""Prompts and models as users have them: each fault one clear message before anything expensive, exit status 2."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastrl.cli import main
from fastrl.config.schema import ModelConfig, TaskConfig
from fastrl.policy.loading import load_model
from fastrl.policy.pretrained import Pretrained
from fastrl.prompts.lengths import extent_of, without_overlong
from fastrl.prompts.tokens import completion_texts, prompt_ids
from fastrl.rollouts import Rollouts
from fastrl.tasks import load_task


@pytest.fixture
def folder(countdown_folder, tmp_path, monkeypatch) -> Path:
    """A copy of the small model, to be broken; the directory is another one."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(countdown_folder, tmp_path / "model"))


def arguments(command: str, folder: Path, **settings) -> list[str]:
    common = {"model.path": folder, "sampler.max-new-tokens": 8} if command != "warmup" else {"model.path": folder}
    if command == "train":
        common |= {
            "batch.prompts-per-step": 2,
            "batch.micro-batch-tokens": 400,
            "run.num-steps": 1,
            "run.folder": "run",
        }
        common |= {"evaluation.at-end": False}
    settings = common | {name.replace("__", ".").replace("_", "-"): value for name, value in settings.items()}
    return [command, *(part for key, value in settings.items() for part in (f"--{key}", str(value)))]


def refused(capsys, command: str, folder: Path, **settings) -> str:
    """What is said for exit status 2: one line, and no run folder."""
    assert main(arguments(command, folder, **settings)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and not Path("run").exists()
    return said[-1]


def ending_tokenizer(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_an_end_of_sequence_behind_a_prompt_is_taken_off_and_said(folder):
    plain, tokenizer = AutoTokenizer.from_pretrained(folder), ending_tokenizer(folder)
    task = load_task(TaskConfig(num_train=3))
    assert tokenizer("1").input_ids[-1] == tokenizer.eos_token_id
    with pytest.warns(UserWarning, match="prompts end in '<eos>'"):
        ids = prompt_ids(task, task.train[0], tokenizer)
    assert ids == prompt_ids(task, task.train[0], plain)
    assert completion_texts(tokenizer, Rollouts.of([], [])) == []


@pytest.mark.parametrize("end", ["<eos>", "<eos> "])
def test_a_chat_that_opens_no_turn_is_refused(folder, end):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}" + end + "{% endfor %}"
    task = load_task(TaskConfig(num_train=3, template="chat"))
    with pytest.raises(ValueError, match=r"ends problem countdown-\S+ with '<eos>'.*add_generation_prompt"):
        prompt_ids(task, task.train[0], tokenizer)


def test_other_special_tokens_behind_a_prompt_go_too_and_a_templates_own_stay(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"sep_token": "<sep>"})
    task, plain = load_task(TaskConfig(num_train=3)), AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <sep>", special_tokens=[("<sep>", tokenizer.sep_token_id)]
    )
    with pytest.warns(UserWarning, match="prompts end in '<sep>'"):
        assert prompt_ids(task, task.train[0], tokenizer) == prompt_ids(task, task.train[0], plain)
    own = replace(task.train[0], prompt=task.train[0].prompt + "<sep>")
    with pytest.warns(UserWarning, match="prompts end in '<sep>'"):
        assert prompt_ids(task, own, tokenizer)[-1] == tokenizer.sep_token_id


@pytest.mark.parametrize("command", ["train", "eval"])
def test_tokens_beyond_the_embedding_are_named(folder, capsys, command):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["="], special_tokens=True)
    tokenizer.add_tokens(["@"])
    tokenizer.save_pretrained(folder)
    Path("rows.jsonl").write_text('{"problem": "1@2", "answer": "3"}\n')
    settings = {"task__name": "math", "task__template": "none"} | {
        f"task__{s}": "rows.jsonl" for s in ("train", "test")
    }
    said = refused(capsys, command, folder, **settings)
    num = len(AutoTokenizer.from_pretrained(folder)) - 1
    assert f"hold token {num}, '@', and the model embeds {num}: tokens were added" in said


@pytest.mark.parametrize("command", ["train", "eval", "warmup"])
@pytest.mark.parametrize("fault", ["no tokenizer", "cut off", "a tensor is missing", "another shape", "no json"])
def test_a_broken_model_folder_is_one_message(folder, capsys, command, fault):
    weights, expected = folder / "model.safetensors", ""
    if fault == "no tokenizer":
        for path in folder.glob("*token*"):
            path.unlink()
        expected = "no tokenizer can be loaded from model.path"
    if fault == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
        expected = "model.safetensors is damaged or incomplete"
    if fault == "a tensor is missing":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, {"format": "pt"})
        expected = "1 parameters are missing, such as model.layers.1.mlp.up_proj.weight"
    if fault == "another shape":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 60}))
        expected = "model.path"
    if fault == "no json":
        (folder / "config.json").write_text("{")
        expected = "model.path"
    assert expected in refused(capsys, command, folder, **({"output": "warm"} if command == "warmup" else {}))


def test_tied_weights_are_not_missing(folder, family_folder):
    for path in (folder, family_folder("qwen2.5"), family_folder("gemma3"), family_folder("gpt2")):
        assert AutoModelForCausalLM.from_pretrained(path).config.tie_word_embeddings
        load_model(Pretrained(ModelConfig(str(path))), lambda text: None)


@pytest.mark.parametrize("template", [None, "{{ raise_exception('only one turn') }}", "{% if", "{{ messages[9].x.y }}"])
def test_a_chat_template_that_fails_is_one_message(folder, capsys, template):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    said = refused(capsys, "train", folder, task__template="chat")
    assert "chat template cannot render problem countdown-" in said


def test_a_chat_of_messages_needs_a_tokenizer_that_can_read_it(folder, capsys):
    messages = {"prompt": [{"role": "user", "content": "1+1"}], "answer": "2"}
    Path("chats.jsonl").write_text(json.dumps(messages) + "\n")
    for template in ("auto", "none", "simple"):
        task = {"task__name": "math", "task__train": "chats.jsonl", "task__template": template}
        said = refused(capsys, "train", folder, **task)
        assert "is a chat of messages, and the tokenizer of the model has no chat template" in said


def test_the_prompt_that_is_too_long_is_named_and_can_be_dropped(folder, capsys):
    rows = [{"problem": "1+2", "answer": "3"}, {"problem": "1" * 500, "answer": "1"}, {"problem": "1+1", "answer": "2"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"task__name": "math", "task__train": "rows.jsonl", "task__template": "none"}
    said = refused(capsys, "train", folder, **settings)
    assert "(500 tokens, rows.jsonl:2)" in said and "task.max_prompt_tokens" in said
    with pytest.warns(UserWarning, match=r"train: 1 of 3 problems .* more than task\.max_prompt_tokens = 20"):
        assert main(arguments("train", folder, **settings, task__max_prompt_tokens=20)) == 0
    shutil.rmtree("run")
    said = refused(capsys, "train", folder, **settings, task__max_prompt_tokens=2)
    assert "none is left" in said


def test_a_huge_prompt_is_refused_before_it_is_tokenised(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = load_task(TaskConfig(num_train=2))
    huge = replace(task, train=[replace(task.train[0], prompt="1+" * 20_000_000, where="f.jsonl:3")])
    with pytest.raises(ValueError, match=r"f\.jsonl:3 has 40000000 characters, which cannot be 512 tokens"):
        extent_of(huge, huge.train, tokenizer, 512)
    with pytest.raises(ValueError, match="none is left"):
        without_overlong(huge, tokenizer, 512)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "completion": "1"}, "the prompt '' has no tokens"),
        (
            {"prompt": "1+1=", "completion": "1" * 300},
            r"a demonstration of 304 tokens; it does not fit micro_batch_tokens = 200",
        ),
        ({"prompt": "1+1=", "completion": "1" * 10_000}, r"a demonstration of 10004 characters; it does not fit"),
    ],
)
def test_warmup_names_the_demonstration_that_cannot_be(folder, capsys, row, message):
    Path("rows.jsonl").write_text('{"prompt": "1=", "completion": "1"}\n' + json.dumps(row) + "\n")
    settings = {"data__file": "rows.jsonl", "micro_batch_tokens": 200, "output": "warm"}
    said = refused(capsys, "warmup", folder, **settings)
    assert message in said and "rows.jsonl:2: " in said
