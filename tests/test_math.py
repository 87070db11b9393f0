r"""The math verifier: which answer is taken, what equals what, and how often it errs on real gold answers.

The measurements on whole datasets need the environment variable FASTRL_DATA: a folder with math_train.jsonl and others.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastrl.tasks import Score
from fastrl.tasks.math import MATH, MathReward
from fastrl.tasks.math_answers.equality import is_equal
from fastrl.tasks.math_answers.exact import Undefined
from fastrl.tasks.math_answers.extraction import extract_answer
from fastrl.tasks.math_answers.latex import parse
from fastrl.tasks.math_answers.notation import comparison_key, normalise
from fastrl.tasks.math_answers.trees import Unreadable
from fastrl.tasks.math_answers.values import evaluate
from fastrl.tasks.rows import UnusableRow

# (gold answer, what stands in the box, whether it is right)
CASES = [
    # numbers
    ("42", "42", True),
    ("42", "42.", True),
    ("42", "+42", True),
    ("42", "43", False),
    ("-3", "3", False),
    ("-3", "−3", True),
    ("5", "5.0", True),
    ("5", "5.000", True),
    ("5", "05", True),
    (".35625", "0.35625", True),
    (".35625", "\\frac{57}{160}", True),
    ("0.5", "\\frac12", True),
    ("0.5", "1/2", True),
    ("\\frac{1}{2}", "\\dfrac{2}{4}", True),
    ("\\frac{1}{2}", "\\frac{1}{3}", False),
    ("\\frac{1}{3}", "0.33", False),
    ("\\frac{1}{3}", "0.3333", False),
    ("\\frac{1}{3}", "0.333333333333", False),
    ("\\frac{1}{3}", "0.33333333333333333333333333", False),
    ("3.14", "\\pi", False),
    ("\\pi", "3.14159265358979", False),
    ("\\sqrt{2}", "1.41421356237310", False),
    ("\\frac{-1}{2}", "-\\frac{1}{2}", True),
    ("1\\frac{4}{5}", "\\frac{9}{5}", True),
    ("1\\frac{4}{5}", "1.8", True),
    ("1\\frac{4}{5}", "\\frac{4}{5}", False),
    ("\\frac43", "\\frac{4}{3}", True),
    ("\\frac9{19}", "9/19", True),
    ("10,\\!080", "10080", True),
    ("1,722", "1722", True),
    ("58,500", "58{,}500", True),
    ("58,500", "58500.0", True),
    ("1722", "1, 722", False),
    ("\\frac{1}{29,322,216}", "\\frac{1}{29322216}", True),
    ("2.5\\times10^{-3}", "0.0025", True),
    ("10^{20}", "100000000000000000000", True),
    ("2^{49}", "562949953421312", True),
    ("2^{49}", "562949953421313", False),
    # units, currency, degrees, percent
    ("\\$18.90", "18.9", True),
    ("18.90", "\\$18.90", True),
    ("5.4 \\text{ cents}", "5.4", True),
    ("15\\mbox{ cm}^2", "15", True),
    ("15", "15 \\text{ square units}", True),
    ("15", "15 square units", True),
    ("15", "15 cm", True),
    ("90^\\circ", "90", True),
    ("90", "90^{\\circ}", True),
    ("90", "90°", True),
    ("\\frac{270}7\\text{ degrees}", "\\frac{270}{7}", True),
    ("50\\%", "50", True),
    ("50", "50\\%", True),
    ("50\\%", "0.5", True),
    ("0.5", "50\\%", True),
    ("50\\%", "5000", False),
    ("50\\%", "0.005", False),
    ("5t", "5", False),
    ("4m", "4", False),
    # algebra
    ("2x+3", "3+2x", True),
    ("2x+3", "2x-3", False),
    ("x^2-1", "(x-1)(x+1)", True),
    ("x^2-1", "(x-1)^2", False),
    ("(a+5)(b+2)", "ab+2a+5b+10", True),
    ("2\\sqrt{5}", "\\sqrt{20}", True),
    ("11\\sqrt2", "11 \\sqrt{2}", True),
    ("\\frac{10}{\\sqrt{3}}", "\\frac{10\\sqrt{3}}{3}", True),
    ("\\frac{\\sqrt{6}}2", "\\sqrt{\\frac{3}{2}}", True),
    ("288 \\pi", "288\\pi", True),
    ("\\pir^2", "\\pi r^2", True),
    ("2\\secx", "\\frac{2}{\\cos x}", True),
    ("\\frac{20000}{\\pi}", "20000\\pi^{-1}", True),
    ("-2 + 7i", "7i-2", True),
    ("-2+7i", "2+7i", False),
    ("x=5", "5", True),
    ("5", "x=5", True),
    ("y = 2x + 3", "2x+3", True),
    ("y=2x+3", "y=2x+4", False),
    ("5x - 7y + 11z + 4 = 0", "5x-7y+11z+4=0", True),
    ("5x-7y+11z+4=0", "5x-7y+11z-4=0", False),
    ("x", "y", False),
    # tuples, lists, sets, intervals, matrices
    ("(3,\\frac{\\pi}{2})", "\\left( 3, \\frac{\\pi}{2} \\right)", True),
    ("(1,2)", "(2,1)", False),
    ("(1,2)", "(1,2,3)", False),
    ("(0.5,0.6)", "(\\frac12,\\frac35)", True),
    ("1,-2", "-2, 1", True),
    ("1,-2", "-2 \\text{ and } 1", True),
    ("2,3,4", "2, 3, \\text{ and } 4", True),
    ("1,-2", "1", False),
    ("1,1", "1", False),
    ("3,5,7", "\\{3,5,7\\}", True),
    ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}", True),
    ("\\{1\\pm\\sqrt{5},-2\\}", "-2, 1-\\sqrt5, 1+\\sqrt5", True),
    ("(3,4]", "\\left(3,4\\right]", True),
    ("(3,4]", "[3,4)", False),
    ("(3,4]", "(3,4)", False),
    ("x \\in [-2,7]", "[-2,7]", True),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(-\\infty,2)\\cup(3,\\infty)", True),
    ("(-\\infty, 2) \\cup (3, \\infty)", "(-\\infty,2)\\cup(4,\\infty)", False),
    ("\\begin{pmatrix} 1 & 0 \\\\ 0 & 1 \\end{pmatrix}", "\\begin{pmatrix}1&0\\\\0&1\\end{pmatrix}", True),
    ("\\begin{pmatrix}1&0\\0&1\\end{pmatrix}", "\\begin{pmatrix} 1 & 0 \\\\ 0 & 1 \\end{pmatrix}", True),
    ("\\begin{pmatrix}1/2\\0\\end{pmatrix}", "\\begin{pmatrix} \\frac12 \\\\ 0 \\end{pmatrix}", True),
    ("\\begin{pmatrix}1&0\\0&1\\end{pmatrix}", "\\begin{pmatrix}1&0\\\\0&2\\end{pmatrix}", False),
    # words, letters, bases, ratios
    ("\\text{Evelyn}", "Evelyn", True),
    ("\\text{east}", "East", True),
    ("\\text{east}", "west", False),
    ("\\text{(B)}", "B", True),
    ("{(D)}", "\\textbf{(D)}", True),
    ("\\text{(B)}", "C", False),
    ("2516_8", "2516_{8}", True),
    ("2516_8", "2517_8", False),
    ("3:5", "3:5", True),
    ("3:5", "5:3", False),
    ("3:1", "3", False),
    # nothing there
    ("7", "\\text{}", False),
    ("7", "?", False),
    ("7", "\\frac{7}{0}", False),
]


@pytest.mark.parametrize(("gold", "answer", "is_right"), CASES)
def test_boxed_answer(gold, answer, is_right):
    score = MathReward()("", f"So we get $\\boxed{{{answer}}}$.", answer=gold)
    assert score.reward == float(is_right), score
    assert (score.reason == "ok") is is_right


JUDGED = [json.loads(line) for line in (Path(__file__).parent / "math_cases.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", sorted({case["kind"] for case in JUDGED}))
def test_judged_pairs(kind):
    """Wrong answers that others' verifiers were reported to pay, and right ones that they refused, kind by kind."""
    wrong = []
    for case in (case for case in JUDGED if case["kind"] == kind):
        score = MathReward()("", case["completion"], **MATH.read_row({"answer": case["answer"]}, "f:1"))
        if score.reward != case["expected"]:
            wrong.append((case["answer"], case["completion"], score.reason))
    assert not wrong


HOSTILE = [
    "9^{9^{9}}",
    "9^{9^{9^{9}}}",
    "(10^{100})!",
    "\\binom{10^9}{10^8}",
    "\\sin(9^{9^{9}})",
    "\\sum_{k=1}^{1000}\\sum_{j=1}^{1000}\\sum_{l=1}^{1000} k",
    "\\prod_{k=1}^{1000} k^{k}",
    "e^{e^{e^{e^{e}}}}",
    "1\\pm1" * 40,
    "1+" * 900 + "1",
    "x" * 1900,
    "(" * 5000,
    "\\sqrt" * 300 + "2",
    "\\frac{1}{" * 300 + "1" + "}" * 300,
    "1" * 100_000,
    "1,\\sqrt2," * 30 + "2",
    "\\text{" * 300,
    " " * 1990 + "a",
    "$" * 1990,
    "a" * 1999,
    "\\",
    "\\frac{}{}",
    "\\sqrt[0]{2}",
    "\\gcd(1.5,2)",
    "\\log_1 2",
    "5\x00",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:20])
def test_hostile_answers_cost_little_and_are_no_fault(text):
    MathReward()("", "\\boxed{\\pi}", answer="3\\sqrt2")
    start = time.process_time()
    for gold in ("5", "x+y", "(1,2)", "\\pi"):
        for completion in (f"\\boxed{{{text}}}", f"The answer is {text}", f"#### {text}"):
            assert MathReward()("", completion, answer=gold).reward == 0.0
    assert time.process_time() - start < 2.4  # 0.2 s each


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Adding gives $\\boxed{5}$.", "5"),
        ("First 2, then 3. The answer is $\\frac12$. I hope it is correct.", "\\frac12"),
        ("2+3=5\n#### 5", "5"),
        ("\\boxed{x^2}", "x^2"),
        ("\\text{two lines}", "\\text{two lines}"),
        ("5 \\text{ if } x>0", "5 \\text{ if } x>0"),
    ],
)
def test_a_worked_solution_is_read(answer, gold):
    assert MATH.read_row({"answer": answer}, "f:1") == {"answer": gold}


@pytest.mark.parametrize(
    "answer",
    [
        "Adding gives 5",
        "Adding 2 and 3 we find 5 at last",
        "We add them up and then we have to divide by x",
        "So \\boxed{",
    ],
)
def test_prose_that_marks_no_answer_is_refused(answer):
    with pytest.raises(UnusableRow, match=r"f\.jsonl:7: 'answer'"):
        MATH.read_row({"answer": answer}, "f.jsonl:7")


@pytest.mark.parametrize(
    "answer", ["1,2,3", "x^2-1", "\\frac12", "50\\%", "[1,\\infty)", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"]
)
def test_equality_is_reflexive_and_symmetric(answer):
    assert is_equal(answer, answer)
    for other in ("2,1", "(x-1)(x+1)", "0.5", "50"):
        assert is_equal(answer, other) == is_equal(other, answer)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{1} and then \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}} is it.", "\\frac{1}{2}"),
        ("\\boxed{ \\{1,2\\} }", "\\{1,2\\}"),
        ("\\boxed{(1,2]}", "(1,2]"),
        ("\\boxed {7}", "7"),
        ("\\boxed 7", "7"),
        ("$\\boxed 7$.", "7"),
        ("\\fbox{9}", "9"),
        ("\\boxed{a}\\fbox{b}", "b"),
        ("The answer is 12.", "12"),
        ("Hence the answer is: $x+1$\nI hope it is correct.", "x+1"),
        ("the answer is 3. No, the answer is 4", "4"),
        ("He pays 5.\n#### 42", "42"),
        ("The answer is 5. \\boxed{6}", "6"),
        ("\\boxed{cut off", None),
        ("\\boxed{1} but \\boxed{", None),
        ("\\boxed{}", None),
        ("The last number is 17", None),
        ("", None),
    ],
)
def test_extract_answer(completion, answer):
    assert extract_answer(completion) == answer


def test_a_number_that_is_not_marked_as_the_answer_scores_zero():
    assert MathReward()("", "We find 6 times 7, which gives 42", answer="42") == Score(0.0, "no answer")
    assert MathReward()("", " \n", answer="42") == Score(0.0, "empty")


def test_normalise_removes_what_carries_no_mathematics():
    assert normalise(" \\left( \\dfrac{1}{2} ,\\; \\tfrac 34 \\right)") == "(\\frac{1}{2},\\frac{3}{4})"
    assert normalise("\\text{(C)}") == "(C)" and comparison_key("(C)") == "C"
    assert normalise("x^{2} + 1 \\leq 5") == "x^2+1\\le5"


def test_numbers_are_exact():
    for text, value in [("0.1", "1/10"), ("-2\\frac{1}{3}", "-7/3"), ("1,234,567.50", "2469135/2"), ("1e-3", "1/1000")]:
        assert str(evaluate(parse(normalise(text)), 60)) == value
    for text in ("1/0", "\\frac{1}{0}", "0^0"):
        with pytest.raises(Undefined):
            evaluate(parse(text), 60)
    for text in ("", "1,23,", "3 5", "١٢", "--1", "1.2.3", "2\\frac{3}{2}", "1/2x/3y"):
        with pytest.raises(Unreadable):
            parse(text)


def test_the_gold_answer_is_read_from_a_row():
    assert MATH.read_row({"answer": "They pay 5+5=10.\n#### 10"}, "f:1") == {"answer": "10"}
    assert MATH.read_row({"answer": 10}, "f:1") == {"answer": "10"}
    assert MATH.read_prompt({"question": "How many?"}, "f:1") == "How many?"
    with pytest.raises(ValueError, match=r"f\.jsonl:7: no field 'answer'; the row has \['problem', 'solution'\]"):
        MATH.read_row({"problem": "p", "solution": "s"}, "f.jsonl:7")


def test_mpmath_stays_out_of_a_process_that_only_compares_numbers():
    code = (
        "import sys; from fastrl.tasks.math import MATH; "
        "assert MATH.reward('', r'\\boxed{0.5}', answer=r'\\frac12').reward == 1.0; "
        "print([m for m in ('mpmath', 'torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


def read_data(name):
    folder = os.environ.get("FASTRL_DATA")
    if not folder:
        pytest.skip("FASTRL_DATA does not name a folder with the datasets")
    path = Path(folder) / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} does not exist")
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("name", ["math_train", "math500", "gsm8k_train", "gsm8k_test", "amc23", "aime24"])
def test_gold_answers_score_one(name):
    rows = read_data(name)
    reward = MathReward()
    num_right = sum(reward("", f"\\boxed{{{row['answer']}}}", answer=row["answer"]).reward for row in rows)
    assert num_right >= 0.985 * len(rows)


@pytest.mark.parametrize("name", ["math_train", "math500"])
def test_gold_solutions_score_one(name):
    rows = read_data(name)
    reward = MathReward()
    num_right = sum(reward("", row["solution"], answer=row["answer"]).reward for row in rows)
    assert num_right >= 0.985 * len(rows)


@pytest.mark.parametrize("shift", [1, 997, 3001])
def test_another_problems_answer_scores_zero(shift):
    rows = read_data("math_train")
    reward = MathReward()
    answers = [row["answer"] for row in rows]
    others = answers[shift:] + answers[:shift]
    pairs = list(zip(answers, others, strict=True))
    is_right = [reward("", f"\\boxed{{{other}}}", answer=gold).reward == 1.0 for gold, other in pairs]
    assert sum(is_right) <= 0.01 * len(rows)
    is_same = [comparison_key(normalise(gold)) == comparison_key(normalise(other)) for gold, other in pairs]
    assert not any(right and not same for right, same in zip(is_right, is_same, strict=True))
