"""Loading tasks, prompt templates, reasoning-gym, a user's own reward, and scoring a file of completions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastrl.config.schema import TaskConfig
from fastrl.tasks import Score, find_kind, load_task
from fastrl.tasks.custom import CustomReward
from fastrl.tasks.templates import MATH_INSTRUCTION, chat_messages, render
from fastrl.tasks.verifier.pool import VerifierError
from fastrl.tasks.verify import check_reward, verify_file


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def math_file(tmp_path):
    rows = [{"problem": f"What is {i}+{i}?", "answer": str(2 * i), "level": i} for i in range(5)]
    return write_lines(tmp_path / "train.jsonl", *rows)


def test_math_from_json_lines(math_file):
    task = load_task(TaskConfig(name="math", train=math_file, test=math_file, num_train=3))
    assert [p.prompt for p in task.train] == ["What is 0+0?", "What is 1+1?", "What is 2+2?"]
    assert [p.where.rpartition("/")[2] for p in task.test] == [f"train.jsonl:{i}" for i in range(1, 6)]
    assert [p.id for p in task.train] == [p.id for p in task.test[:3]] and len({p.id for p in task.test}) == 5
    assert task.train[1].row == {"answer": "2"}
    assert task.validation == []
    assert task.template == "qwen" and task.instruction == MATH_INSTRUCTION
    assert task.reward("", "\\boxed{2}", **task.train[1].row) == Score(1.0, "ok")


def test_only_the_splits_asked_for_are_read(math_file):
    task = load_task(TaskConfig(name="math", train="missing.jsonl", test=math_file), splits=["test"])
    assert task.train == [] and len(task.test) == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coutdown", "unknown task 'coutdown'.*Did you mean 'countdown'"),
        ("reasoning-gym:leg_countin", "no dataset 'leg_countin'.*Did you mean leg_counting"),
        ("my-reward:f", "expected module:function"),
        ("module:", "expected module:function"),
        ("math", "task 'math' generates no problems: set train"),
    ],
)
def test_an_impossible_task_name_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        load_task(TaskConfig(name=name))


def test_a_missing_file_is_an_error():
    with pytest.raises(FileNotFoundError, match=r"no such file: 'data/nowhere\.jsonl'"):
        load_task(TaskConfig(name="math", train="data/nowhere.jsonl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"problem": "p", "answer": "1"}\n{"problem": "p"}\n',
            r"bad\.jsonl:2: no field 'answer'; the row has \['problem'\]",
        ),
        ('{"answer": "1"}\n', r"bad\.jsonl:1: no field 'problem' or 'question' or 'prompt'; the row has \['answer'\]"),
        ('{"problem": "p", "answer": ["1"]}\n', r"bad\.jsonl:1: field 'answer' must be text, found \['1'\]"),
        ('{"problem": "p", "answer": true}\n', r"bad\.jsonl:1: field 'answer' must be text, found True"),
        ('{"problem": "p", "answer": "1"}\nnot json\n', r"bad\.jsonl:2: not a JSON object"),
        ('["p", "1"]\n', r"bad\.jsonl:1: expected a JSON object, found list"),
        ("\n\n", r"bad\.jsonl' has no rows"),
        (
            '{"problem": "p", "answer": ""}\n',
            r"1 of 1 rows cannot be used, the first: .*bad\.jsonl:1: field 'answer' is empty",
        ),
    ],
)
def test_a_bad_row_is_an_error_with_its_line(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_task(TaskConfig(name="math", train=str(tmp_path / "bad.jsonl")))


def test_text_that_is_not_utf8_is_an_error_with_its_line(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b'{"problem": "p", "answer": "1"}\n{"problem": "\xff"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: not a JSON object"):
        load_task(TaskConfig(name="math", train=str(tmp_path / "bad.jsonl")))


def test_a_few_empty_answers_are_skipped_and_said(tmp_path):
    rows = [{"problem": str(i), "answer": str(i)} for i in range(199)] + [{"problem": "?", "answer": " "}]
    path = write_lines(tmp_path / "some.jsonl", *rows)
    with pytest.warns(
        UserWarning, match=r"skipped 1 of 200 rows, the first: .*some\.jsonl:200: field 'answer' is empty"
    ):
        assert len(load_task(TaskConfig(name="math", train=path)).train) == 199


def test_a_hugging_face_dataset_in_a_local_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "arithmetic"
    folder.mkdir()
    write_lines(
        folder / "train.jsonl", {"question": "1+1?", "answer": "#### 2"}, {"question": "1+2?", "answer": "#### 3"}
    )
    write_lines(folder / "test.jsonl", {"question": "2+2?", "answer": "#### 4"})
    config = TaskConfig(name="math", train=str(folder), validation=f"{folder}:test", test=str(folder))
    task = load_task(config)
    assert [p.row["answer"] for p in task.train] == ["2", "3"]
    assert [p.row["answer"] for p in task.validation] == [p.row["answer"] for p in task.test] == ["4"]
    assert task.train[1].where.endswith("arithmetic:train, row 1") and task.train[1].id.startswith("1-2-")
    with pytest.raises(ValueError, match="arithmetic:dev' has no split 'dev'; it has train, test"):
        load_task(TaskConfig(name="math", train=f"{folder}:dev"))


def test_a_dataset_id_that_does_not_exist_is_an_error():
    code = (
        "from fastrl.config.schema import TaskConfig; from fastrl.tasks import load_task\n"
        "try: load_task(TaskConfig(name='math', train='nobody/nothing'))\n"
        "except ValueError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "PYTHONSAFEPATH": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert result.stdout.startswith("cannot load 'nobody/nothing'"), result.stderr


def test_templates_of_the_paper():
    assert render("qwen", "What is 1+1?") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1+1?\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert render("qwen3-no-thinking", "q") == render("qwen", "q") + "<think>\n\n</think>\n"
    assert render("simple", "q") == "Question:\nq\nAnswer:\nLet's think step by step.\n"
    assert render("none", "3 5 7 2=24:") == "3 5 7 2=24:"
    assert render("llama", "q").endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_a_question_may_contain_braces_and_placeholders():
    question = "Simplify {input} and {question} and \\frac{1}{2}"
    assert render("none", question) == question
    assert question + "\nPlease reason" in render("qwen", question)


def test_the_instruction_is_the_tasks_own():
    assert "<|im_start|>user\nq<|im_end|>\n" in render("qwen", "q", instruction="")
    assert chat_messages("q", "Say it.") == [{"role": "user", "content": "q\nSay it."}]
    assert chat_messages("q", "") == [{"role": "user", "content": "q"}]


def test_an_unknown_template_names_the_nearest(math_file):
    with pytest.raises(ValueError, match=r"unknown template 'qwen3'.*Did you mean 'qwen"):
        load_task(TaskConfig(name="math", train=math_file, template="qwen3"))
    with pytest.raises(ValueError, match="'chat' has no text"):
        render("chat", "q")
    assert load_task(TaskConfig(name="math", train=math_file, template="chat")).template == "chat"


REWARDS = """
import math

def length(prompt, completion, *, target, **row):
    return -abs(len(completion) - target) / 10

def none(prompt, completion, **row): return None
def nan(prompt, completion, **row): return math.nan
def text(prompt, completion, **row): return "1"
def raises(prompt, completion, **row): return completion[0]
def hangs(prompt, completion, **row):
    while True: pass
def wrong_arguments(prompt): return 0.0
constant = 3
"""


@pytest.fixture
def own_rewards(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(REWARDS)
    write_lines(tmp_path / "rows.jsonl", {"prompt": "Write 5 letters", "target": 5, "topic": "letters"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own_task(function, **settings):
    config = TaskConfig(name=f"own_rewards:{function}", train="rows.jsonl", timeout_s=2.0, **settings)
    return load_task(config), config


def test_a_users_reward_gets_every_field_but_the_prompt(own_rewards):
    task, config = own_task("length")
    (problem,) = task.train
    assert problem.prompt == "Write 5 letters"
    assert problem.row == {"target": 5, "topic": "letters"}
    assert task.reward == CustomReward("own_rewards:length", str(Path.cwd()))
    assert "own_rewards" not in sys.modules  # imported in workers only
    check_reward(task, config)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("none", r"'own_rewards:none' failed on problem '.*rows.jsonl:1'.*returned None \(NoneType\).*finite float"),
        ("nan", "returned nan"),
        ("text", r"returned '1' \(str\)"),
        ("raises", "IndexError: string index out of range"),
        ("hangs", "timeout"),
        ("wrong_arguments", r"TypeError: wrong_arguments.*end the arguments with \*\*row$"),
        ("constant", "own_rewards:constant is 3, not a function"),
        ("missing", r"has no attribute 'missing'.*2048\)$"),
    ],
)
def test_a_broken_reward_is_found_before_training(own_rewards, function, message):
    task, config = own_task(function)
    with pytest.raises(ValueError, match=message):
        check_reward(task, config)


def test_a_reward_module_that_does_not_exist_is_found_before_training(own_rewards):
    config = TaskConfig(name="no_such_rewards:f", train="rows.jsonl")
    with pytest.raises(ValueError, match="No module named 'no_such_rewards'"):
        check_reward(load_task(config), config)


def test_rows_must_not_bring_the_completion(own_rewards):
    write_lines(own_rewards / "rows.jsonl", {"prompt": "p", "completion": "c"})
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'completion' is what the model writes"):
        own_task("length")


def test_verify_file_for_math_keeps_rows_and_order(tmp_path):
    rows = [
        {"completion": "\\boxed{\\frac12}", "answer": "0.5", "id": "ü"},
        {"completion": "\\boxed{9^{9^{9^9}}}", "answer": "1"},
        {"completion": "", "answer": "1"},
        {"completion": "half \ud800", "answer": "1"},
        {"completion": "the answer is 7", "answer": 7, "reward": 0.25, "reason": "old"},
    ]
    source = Path(write_lines(tmp_path / "in.jsonl", *rows))
    summary = verify_file(TaskConfig(name="math", num_workers=1), source, tmp_path / "new" / "out.jsonl")
    lines = (tmp_path / "new" / "out.jsonl").read_text().splitlines()
    scored = [json.loads(line) for line in lines]
    assert [(row["reward"], row["reason"]) for row in scored] == [
        (1.0, "ok"),
        (0.0, "different"),
        (0.0, "empty"),
        (0.0, "invalid unicode"),
        (1.0, "ok"),
    ]
    for before, after in zip(rows, scored, strict=True):
        assert {k: v for k, v in before.items() if k not in ("reward", "reason")} == {
            k: v for k, v in after.items() if k not in ("reward", "reason")
        }
    assert summary["num_rows"] == 5 and summary["num_correct"] == 2 and summary["mean_reward"] == pytest.approx(0.4)
    assert summary["reasons"]["ok"] == 2 and summary["num_faults"] == 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out.jsonl"]


def test_verify_file_for_countdown_in_place(tmp_path):
    rows = [{"completion": text, "numbers": [3, 5, 7, 2], "target": 17} for text in ("3+5+7+2", "3+5+7", "2+")]
    path = Path(write_lines(tmp_path / "both.jsonl", *rows))
    assert verify_file(TaskConfig(num_workers=1), path, path)["num_correct"] == 1
    assert [json.loads(line)["reason"] for line in path.read_text().splitlines()] == ["ok", "numbers", "syntax"]


def test_verify_file_with_a_users_reward(own_rewards):
    write_lines(own_rewards / "in.jsonl", {"completion": "abc", "target": 5}, {"completion": "abcde", "target": 5})
    config = TaskConfig(name="own_rewards:length", num_workers=1)
    assert verify_file(config, Path("in.jsonl"), Path("out.jsonl"))["mean_reward"] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "1"}, r"in\.jsonl:2: 'completion' must be the model's text; the row has \['answer'\]"),
        ({"answer": "1", "completion": None}, r"in\.jsonl:2: 'completion' must be the model's text; it is None"),
        ({"completion": "x"}, r"in\.jsonl:2: no field 'answer'; the row has \[\]"),
        ({"completion": "x", "answer": ""}, r"in\.jsonl:2: field 'answer' is empty"),
    ],
)
def test_verify_file_names_the_line_that_lacks_something(tmp_path, row, message):
    source = Path(write_lines(tmp_path / "in.jsonl", {"completion": "x", "answer": "1"}, row))
    with pytest.raises(ValueError, match=message):
        verify_file(TaskConfig(name="math"), source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_verify_file_leaves_nothing_behind_when_the_verifier_is_broken(own_rewards):
    write_lines(own_rewards / "in.jsonl", *[{"completion": "x"}] * 10)
    before = sorted(own_rewards.iterdir())
    with pytest.raises(VerifierError, match="returned None"):
        verify_file(TaskConfig(name="own_rewards:none"), Path("in.jsonl"), Path("out.jsonl"))
    assert sorted(own_rewards.iterdir()) == before
    with pytest.raises(FileNotFoundError, match="no such file"):
        verify_file(TaskConfig(name="own_rewards:none"), Path("nowhere.jsonl"), Path("out.jsonl"))


def test_find_kind_knows_the_built_in_tasks():
    assert find_kind("countdown").template == "none" and find_kind("math").template == "qwen"
    assert find_kind("a.b:c").reward == CustomReward("a.b:c")
