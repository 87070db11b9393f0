"""Rows of data: what is known by its content, what is skipped, what is named."""

import json
import warnings

import pytest

from fastrl.cli import main
from fastrl.config.schema import TaskConfig
from fastrl.evaluation.evaluate import check_same_problems
from fastrl.statistics import paired_pass_difference, solved_and_lost
from fastrl.tasks import load_task
from fastrl.tasks.rows import number_text, read_rows


def write(path, rows) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(path, rows, **settings):
    return load_task(TaskConfig(name="math", train=write(path, rows), **settings)).train


AIME = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(6)]
AMC = [{"problem": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(6)]


def evaluation(task, correct=1) -> dict:
    counts = [{"id": p.id, "num_correct": correct, "num_samples": 4} for p in task]
    return {"num_samples": 4, "problems": counts}


def test_problems_are_known_by_their_content_not_by_their_place(tmp_path):
    """Files of one name and length in two folders are other problems; equal ones pair in any order, from any file."""
    aime, amc = (problems(tmp_path / name / "test.jsonl", rows) for name, rows in (("aime", AIME), ("amc", AMC)))
    with pytest.raises(ValueError, match="evaluations of different problems"):
        paired_pass_difference(evaluation(aime), evaluation(amc))
    with pytest.raises(ValueError, match="evaluations of different problems"):
        solved_and_lost(evaluation(aime), evaluation(amc))
    with pytest.raises(ValueError, match="hold different problems"):
        check_same_problems(evaluation(aime), [p.id for p in amc])
    shuffled = problems(tmp_path / "other" / "any.jsonl", AIME[::-1])
    base, new = evaluation(aime, correct=0), evaluation(shuffled, correct=0)
    new["problems"][0]["num_correct"] = 4  # the last of AIME
    assert solved_and_lost(base, new) == ([aime[-1].id], [])
    assert paired_pass_difference(new, base)[1].mean == pytest.approx(1 / 6)
    changed = problems(tmp_path / "changed.jsonl", [AIME[0] | {"answer": "7"}])
    assert changed[0].id != aime[0].id


def test_a_problem_that_is_there_twice_counts_twice_and_pairs(tmp_path):
    twice = [AIME[0], AIME[1], AIME[0]]
    first = problems(tmp_path / "a.jsonl", twice)
    second = problems(tmp_path / "b.jsonl", [AIME[1], AIME[0], AIME[0]])
    assert len({p.id for p in first}) == 3 and {p.id for p in first} == {p.id for p in second}
    assert paired_pass_difference(evaluation(first), evaluation(second))[1].mean == 0


def test_evaluations_that_know_problems_by_their_place_are_refused():
    for place in ("test.jsonl:1", "arithmetic:train, row 1"):
        old = {"num_samples": 4, "problems": [{"id": place, "num_correct": 1}]}
        with pytest.raises(ValueError, match="by its place in a file"):
            paired_pass_difference(old, old)


LACKING = [{"problem": "p", "answer": None}, {"problem": "p", "answer": ""}, {"problem": "p"}, {"answer": "1"}]
LACKING += [{"problem": None, "answer": "1"}, {"problem": " ", "answer": "1"}]


@pytest.mark.parametrize("lacking", LACKING, ids=str)
def test_one_rule_for_null_empty_and_absent(tmp_path, lacking):
    rows = [{"problem": f"p{i}", "answer": str(i)} for i in range(199)]
    with pytest.warns(UserWarning, match=r"skipped 1 of 200 rows, the first: .*one\.jsonl:200: (?:no )?field"):
        assert len(problems(tmp_path / "one.jsonl", [*rows, lacking])) == 199
    with pytest.raises(ValueError, match=r"3 of 202 rows cannot be used, the first: .*three\.jsonl:200: "):
        problems(tmp_path / "three.jsonl", [*rows, lacking, lacking, lacking])


def test_verify_scores_what_can_be_scored(tmp_path, capsys):
    rows = [{"completion": f"\\boxed{{{i}}}", "answer": str(i)} for i in range(149)]
    rows.insert(7, {"completion": "\\boxed{1}", "answer": ""})
    source = write(tmp_path / "in.jsonl", rows)
    assert main(["verify", "--task", "math", "--input", source, "--output", str(tmp_path / "out.jsonl")]) == 0
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert scored[7]["reward"] is None and "in.jsonl:8: field 'answer' is empty" in scored[7]["reason"]
    assert [row["reward"] for row in scored[:7] + scored[8:]] == [1.0] * 149


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.0, "5"), (5, "5"), (1e-05, "0.00001"), (1e22, "1" + "0" * 22), (-0.5, "-0.5"), (0.1, "0.1"),
        (10**30, "1" + "0" * 30), (100.0, "100"), (2.50, "2.5"), (1e-7, "0.0000001"),
    ],
)  # fmt: skip
def test_answers_that_are_numbers_mean_the_number(tmp_path, value, text):
    assert number_text(value, "x") == text
    (problem,) = problems(tmp_path / "rows.jsonl", [{"problem": "p", "answer": value}])
    assert problem.row == {"answer": text}


@pytest.mark.parametrize("value", [True, [1], {"a": 1}, float("nan"), float("inf")])
def test_other_answers_are_named(tmp_path, value):
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: field 'answer' must be"):
        problems(tmp_path / "rows.jsonl", [{"problem": "p", "answer": value}])


def test_text_that_no_tokenizer_takes_is_named_with_its_line(tmp_path, capsys):
    for number, line in enumerate(
        ['{"problem": "half \\ud83d", "answer": "1"}', '{"problem": "p", "extra": ["\\udc00"], "answer": "1"}']
    ):
        path = tmp_path / f"{number}.jsonl"
        path.write_text('{"problem": "p", "answer": "1"}\n' + line + "\n")
        with pytest.raises(ValueError, match=rf"{number}\.jsonl:2: a lone surrogate"):
            read_rows(str(path), "train")
    path.write_text('{"problem": "a pair is fine \\ud83d\\ude00", "answer": "1"}\n')
    assert read_rows(str(path), "train")[0][1]["problem"].endswith("😀")
    path.write_text('{"problem": "p", "answer": ' + "[" * 10_000 + "]" * 10_000 + "}\n")
    with pytest.raises(ValueError, match=r"1\.jsonl:1: brackets are nested too deeply"):
        read_rows(str(path), "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["verify", "--task", "math", "--input", str(path), "--output", str(tmp_path / "o.jsonl")]) == 2
    assert "1.jsonl:1" in capsys.readouterr().err
