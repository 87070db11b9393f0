"""Data as people have it: columns of other names, chats, what the system says, saved datasets, and flags for tables."""

import json

import pytest

from fastrl.cli import main
from fastrl.config.files import from_dict, load_config, to_toml
from fastrl.config.schema import ScratchConfig, TaskConfig, TrainConfig
from fastrl.config.tables import with_table_flags
from fastrl.policy.scratch import scratch_tokenizer
from fastrl.prompts.tokens import prompt_ids
from fastrl.tasks import load_task

ROWS = [{"question": f"{i}+1?", "solution": str(i + 1), "prompt": "another", "problem": "a third"} for i in range(3)]
CHAT = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"


@pytest.fixture
def rows(tmp_path) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "rows.jsonl")


def chat_file(tmp_path, *chats) -> str:
    lines = [json.dumps({"prompt": chat, "answer": "2"}) + "\n" for chat in chats]
    (tmp_path / "chats.jsonl").write_text("".join(lines))
    return str(tmp_path / "chats.jsonl")


def text_of(task, number=0) -> str:
    tokenizer = scratch_tokenizer(ScratchConfig(characters="".join(map(chr, [10, *range(32, 127)]))))
    tokenizer.chat_template = CHAT
    return tokenizer.decode(prompt_ids(task, task.train[number], tokenizer))


def test_columns_are_read_under_the_names_that_the_task_looks_for(rows):
    columns = {"prompt": "question", "answer": "solution"}
    task = load_task(TaskConfig(name="math", train=rows, columns=columns))
    assert [(p.prompt, p.row) for p in task.train] == [(f"{i}+1?", {"answer": str(i + 1)}) for i in range(3)]
    task = load_task(TaskConfig(name="my:reward", train=rows, columns=columns))
    assert [p.row for p in task.train] == [{"answer": str(i + 1), "problem": "a third"} for i in range(3)]
    task = load_task(TaskConfig(name="my:reward", train=rows))
    assert (task.train[0].prompt, task.train[0].row) == (
        "another",
        {"question": "0+1?", "solution": "1", "problem": "a third"},
    )


def test_a_column_that_is_not_there_is_an_error_with_those_that_are(rows):
    message = r"rows\.jsonl:1: task\.columns names 'solutions', but the row has \['problem', 'prompt', 'question',"
    with pytest.raises(ValueError, match=message):
        load_task(TaskConfig(name="math", train=rows, columns={"answer": "solutions"}))


def test_chats_take_the_chat_template_and_what_the_system_says(tmp_path):
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]
    path = chat_file(tmp_path, own[1:], own)
    task = load_task(TaskConfig(name="math", train=path, system_prompt="brief", instruction="box it"))
    assert task.template == "chat"
    assert text_of(task) == "s:brief;u:q\nbox it;a:" and text_of(task, 1) == "s:own;u:q\nbox it;a:"
    assert load_task(TaskConfig(name="math", train=path, template="simple")).template == "simple"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("auto", "s:{it};u:0+1?;a:"),
        ("chat", "s:{it};u:0+1?;a:"),
        ("qwen", "<|im_start|>system\n{it}<|im_end|>\n<|im_start|>user\n0+1?<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_question_gets_a_system_prompt_where_there_is_a_place_for_it(rows, template, expected):
    config = TaskConfig(
        name="my:reward", train=rows, columns={"prompt": "question"}, template=template, system_prompt="{it}"
    )
    assert text_of(load_task(config)) == expected


def test_a_template_without_a_place_for_a_system_prompt_is_an_error(rows):
    with pytest.raises(ValueError, match=r"task\.system_prompt has no place in task\.template = 'none'"):
        load_task(TaskConfig(name="my:reward", train=rows, template="none", system_prompt="brief"))


def test_saved_datasets_and_parquet(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    train, test = datasets.Dataset.from_list(ROWS[:2]), datasets.Dataset.from_list(ROWS[2:])
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "splits"))
    train.save_to_disk(str(tmp_path / "one"))
    (tmp_path / "folder").mkdir()
    train.to_parquet(str(tmp_path / "folder" / "train.parquet"))

    def questions(source, split="train"):
        config = TaskConfig(name="my:reward", columns={"prompt": "question"}, **{split: str(tmp_path / source)})
        return [p.prompt for p in getattr(load_task(config, splits=(split,)), split)]

    assert questions("splits") == questions("one") == questions("folder") == ["0+1?", "1+1?"]
    assert questions("folder/train.parquet") == questions("one", "validation") == ["0+1?", "1+1?"]
    assert questions("splits", "test") == questions("splits:test") == ["2+1?"]
    assert questions("splits:train[1:]") == questions("splits:train[-1:]") == ["1+1?"]
    with pytest.raises(ValueError, match=r"train\[a:\] is no part of a split, such as train\[:1000\]"):
        questions("splits:train[a:]")
    with pytest.raises(ValueError, match="splits' has no split 'validation'; it has train, test: name one of them"):
        questions("splits", "validation")
    with pytest.raises(FileNotFoundError, match=r"no such file: '.*none\.parquet'"):
        questions("none.parquet")


def test_entries_of_tables_are_flags(tmp_path):
    base = TrainConfig(task=TaskConfig(columns={"prompt": "q"}))
    flags = ["--task.columns.answer", "a", "--run.seed", "3", "--task.rewards.my.style:brief=0.5", "--x"]
    config, left = with_table_flags(base, flags)
    assert config.task.columns == {"prompt": "q", "answer": "a"} and config.task.rewards == {"my.style:brief": 0.5}
    assert left == ["--run.seed", "3", "--x"] and base.task.columns == {"prompt": "q"}
    for flags, message in (
        (["--task.rewards.f", "x"], "f x: a number is needed"),
        (["--task.columns.f"], "needs a value"),
    ):
        with pytest.raises(ValueError, match=message):
            with_table_flags(base, flags)


def test_tables_come_back_from_a_file_and_are_checked(tmp_path):
    config = TrainConfig(task=TaskConfig(name="my:f", columns={"prompt": "q"}, rewards={"verifier": 2.0, "my:g": 0.0}))
    (tmp_path / "run.toml").write_text(to_toml(config))
    read = load_config(TrainConfig, tmp_path / "run.toml")
    assert read.task.rewards == {"verifier": 2.0, "my:g": 0.0} and read.task.columns == {"prompt": "q"}
    for table, message in (({"rewards": {"my:g": "x"}}, "a number is needed"), ({"columns": {"a": 3}}, "valid string")):
        with pytest.raises(ValueError, match=message):
            from_dict(TrainConfig, {"task": table})


def test_the_command_line_passes_entries_on(tmp_path, rows, capsys):
    options = ["--task.name", "math", "--task.train", rows, "--task.columns.prompt", "quest"]
    assert main(["train", "--model.path", "nowhere", "--run.folder", str(tmp_path / "run"), *options]) == 2
    assert "task.columns names 'quest', but the row has" in capsys.readouterr().err
