"""Countdown: the grammar, the reward's reasons, the split, the generator and the demonstrations."""

import collections
import hashlib
import itertools
import os
import random
import subprocess
import sys
import time

import pytest

from fastrl.config.schema import TaskConfig
from fastrl.tasks import Score, countdown, load_task
from fastrl.tasks.expression import MAX_LENGTH, ExpressionError, evaluate, parse_expression

NUMBERS = [3, 5, 7, 2]


@pytest.mark.parametrize(
    ("completion", "target", "reason"),
    [
        ("3+5+7+2", 17, "ok"),
        ("2*(3+7)+5", 25, "ok"),
        ("(3-5)*(2-7)", 10, "ok"),
        ("3-5-7-2", -11, "ok"),
        ("3-(5-(7-2))", 3, "ok"),
        ("((((3)+((5)))+7)+2)", 17, "ok"),
        (" 3 + 5+7 +  2 ", 17, "ok"),
        ("3+5*7+2", 40, "ok"),  # the product binds more tightly
        ("3+5+7+2", 18, "value"),
        ("3-5-7-2", 11, "value"),
        ("3+5+7", 15, "numbers"),
        ("3+5+7+2+2", 19, "numbers"),
        ("3+5+7+7", 22, "numbers"),
        ("35+7+2", 44, "numbers"),
        ("17", 17, "numbers"),
        ("3*5+7+2*0", 22, "numbers"),
        ("", 17, "empty"),
        ("   ", 17, "empty"),
        ("3+5+7+2=17", 17, "syntax"),
        ("3+5+7+2\n", 17, "syntax"),
        ("\t3+5+7+2", 17, "syntax"),
        ("-3+5+7+2", 11, "syntax"),
        ("3+5+7+-2", 13, "syntax"),
        ("+3+5+7+2", 17, "syntax"),
        ("3+5+7/2", 11, "syntax"),
        ("3+5+7**2", 57, "syntax"),
        ("2(3+5)+7", 23, "syntax"),
        ("(3+5)(7+2)", 72, "syntax"),
        ("(3+5)2+7", 23, "syntax"),
        ("3 5+7+2", 17, "syntax"),
        ("(3+5+7+2", 17, "syntax"),
        ("3+5+7+2)", 17, "syntax"),
        ("()3+5+7+2", 17, "syntax"),
        ("3+5+7+", 15, "syntax"),
        ("03+5+7+2", 17, "syntax"),
        ("3.0+5+7+2", 17, "syntax"),
        ("3+5+7+2;", 17, "syntax"),
        ("3+5+7+٢", 17, "syntax"),
        ("３+5+7+2", 17, "syntax"),
        ("3+5+7+²", 17, "syntax"),
        ("3−5+7+2", 7, "syntax"),
        ("3+5+7+2\0", 17, "syntax"),
        ("__import__('os')", 17, "syntax"),
        ("9" * 400, 17, "syntax"),
        ("(" * 10_000 + "3+5+7+2" + ")" * 10_000, 17, "syntax"),
        ("3+5+7+2" + " " * MAX_LENGTH, 17, "syntax"),
    ],
)
def test_reward(completion, target, reason):
    expected = Score(1.0 if reason == "ok" else 0.0, reason)
    assert countdown.reward("", completion, numbers=NUMBERS, target=target) == expected


def test_zero_and_large_numbers_from_files():
    assert countdown.reward("", "0*125+30", numbers=[30, 0, 125], target=30).reason == "ok"
    assert countdown.reward("", "00*125+30", numbers=[30, 0, 125], target=30).reason == "syntax"
    many = list(range(10, 26))
    assert countdown.reward("", "+".join(map(str, many)), numbers=many, target=sum(many)).reason == "ok"


def test_the_parser_agrees_with_python_on_random_texts():
    """Python is the oracle for texts of this alphabet, where it accepts them and no unary sign is involved."""
    rng = random.Random(0)
    num_accepted = 0
    for _ in range(20_000):
        text = "".join(rng.choice("12(+-*) ") for _ in range(rng.randint(1, 9)))
        try:
            numbers, postfix = parse_expression(text)
        except ExpressionError:
            continue
        num_accepted += 1
        # The text has passed our own grammar: digits, + - *, parentheses, spaces.
        assert evaluate(postfix) == eval(text.strip())
        assert numbers == [int(n) for n in text.translate(str.maketrans("()+-*", "     ")).split()]
    assert num_accepted > 500


def test_no_permutation_of_a_problem_is_in_another_split():
    task = load_task(TaskConfig(num_validation=0, num_test=0))
    keys = {}
    for split in ("train", "validation", "test"):
        problems = getattr(task, split)
        keys[split] = {(tuple(sorted(p.row["numbers"])), p.row["target"]) for p in problems}
        assert len(keys[split]) == len(problems)
    for one, other in itertools.combinations(keys, 2):
        assert keys[one].isdisjoint(keys[other])
    assert {split: len(k) for split, k in keys.items()} == {"train": 16237, "validation": 2088, "test": 2062}
    for order in itertools.permutations([9, 1, 4, 6]):
        assert countdown.split_of(order, 24) == countdown.split_of((1, 4, 6, 9), 24)


def test_the_split_is_a_stable_hash():
    digest = hashlib.sha256(b"1,4,6,9=24").digest()
    bucket = int.from_bytes(digest[:8], "big") % 10
    assert countdown.split_of([9, 6, 4, 1], 24) == (["train"] * 8 + ["validation", "test"])[bucket]


def test_every_solvable_problem_is_found():
    """Brute force over all orders, operators and the five ways to bracket four numbers."""
    shapes = [
        "(({}{}{}){}{}){}{}",
        "({}{}({}{}{})){}{}",
        "({}{}{}){}({}{}{})",
        "{}{}(({}{}{}){}{})",
        "{}{}({}{}({}{}{}))",
    ]
    for digits in ((1, 1, 1, 1), (2, 3, 5, 7), (1, 8, 9, 9)):
        values = set()
        for a, b, c, d in set(itertools.permutations(digits)):
            for x, y, z in itertools.product("+-*", repeat=3):
                values |= {eval(shape.format(a, x, b, y, c, z, d)) for shape in shapes}
        expected = {value for value in values if 1 <= value <= 99}
        assert {target for numbers, target in countdown.solvable() if numbers == digits} == expected


def test_the_seed_orders_the_problems_and_another_process_agrees():
    first = load_task(TaskConfig(seed=3))
    assert [p.prompt for p in first.train] == [p.prompt for p in load_task(TaskConfig(seed=3)).train]
    assert [p.prompt for p in first.test] != [p.prompt for p in load_task(TaskConfig(seed=4)).test]
    code = (
        "from fastrl.config.schema import TaskConfig; from fastrl.tasks import load_task; "
        "print([p.prompt for p in load_task(TaskConfig(seed=3)).test])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert result.stdout.strip() == str([p.prompt for p in first.test]), result.stderr


def test_generating_takes_little_time_and_respects_the_counts():
    countdown.solvable.cache_clear()
    countdown._reachable.cache_clear()
    start = time.monotonic()
    task = load_task(TaskConfig(num_train=100, num_validation=20, num_test=30))
    assert time.monotonic() - start < 5
    assert (len(task.train), len(task.validation), len(task.test)) == (100, 20, 30)
    assert task.template == "none"
    problem = task.train[0]
    numbers, target = problem.row["numbers"], problem.row["target"]
    assert problem.prompt == f"{' '.join(map(str, numbers))}={target}:"


def test_demonstrations_are_right_minimal_and_of_the_train_split():
    pairs = countdown.demonstrations(random.Random(0), 3000)
    assert len(pairs) == 3000
    assert pairs == countdown.demonstrations(random.Random(0), 3000)
    orders = set()
    for prompt, completion in pairs:
        left, right = prompt.split("=")
        numbers, target = [int(n) for n in left.split()], int(right.removesuffix(":"))
        assert countdown.reward(prompt, completion, numbers=numbers, target=target) == Score(1.0, "ok")
        assert countdown.split_of(numbers, target) == "train"
        for i, character in enumerate(completion):
            if character == "(":
                assert value_for_primes(without_pair(completion, i)) != value_for_primes(completion), completion
        used = [int(c) for c in completion if c.isdigit()]
        orders.add(used == numbers)
    assert orders == {True, False}  # the prompt's order is independent of the completion's
    assert {c for _, text in pairs for c in text} == set("123456789+-*()")


def without_pair(text, opening):
    """`text` without the parentheses that open at `opening`."""
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return text[:opening] + text[opening + 1 : i] + text[i + 1 :]
    raise AssertionError(text)


def value_for_primes(text):
    """The value with the four digits replaced by primes, which no two different expressions share by chance here."""
    primes = iter(["101", "211", "307", "401"])
    return evaluate(parse_expression("".join(next(primes) if c.isdigit() else c for c in text))[1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{}", r"countdown\.jsonl:2: no field 'numbers'; the row has \[\]"),
        ('{"numbers": [1, 2]}', r"countdown\.jsonl:2: no field 'target'"),
        ('{"numbers": "1 2", "target": 3}', r"countdown\.jsonl:2: 'numbers' must be a list .*found '1 2'"),
        ('{"numbers": [1, 2.5], "target": 3}', "must be a list of 1 to 16 whole numbers"),
        ('{"numbers": [1, true], "target": 3}', "must be a list of 1 to 16 whole numbers"),
        ('{"numbers": [1, -2], "target": 3}', "must be a list of 1 to 16 whole numbers"),
        ('{"numbers": [], "target": 3}', "must be a list of 1 to 16 whole numbers"),
        ('{"numbers": [1, 2], "target": "3"}', "'target' must be a whole number, found '3'"),
    ],
)
def test_a_bad_row_is_an_error_with_its_line(tmp_path, row, message):
    path = tmp_path / "countdown.jsonl"
    path.write_text(f'{{"numbers": [10, 25, 3], "target": 32}}\n{row}\n')
    with pytest.raises(ValueError, match=message):
        load_task(TaskConfig(train=str(path)))


def test_rows_from_a_file(tmp_path):
    path = tmp_path / "countdown.jsonl"
    path.write_text('{"numbers": [10, 25, 3], "target": 32}\n\n{"numbers": [4], "target": 4}\n')
    task = load_task(TaskConfig(train=str(path)))
    assert [p.prompt for p in task.train] == ["10 25 3=32:", "4=4:"]
    assert [p.where.rpartition("/")[2] for p in task.train] == ["countdown.jsonl:1", "countdown.jsonl:3"]
    assert task.reward("", "10+25-3", **task.train[0].row) == Score(1.0, "ok")
    assert task.validation == [] and task.test == [] and task.demonstrations is None


def test_all_of_a_split_and_nearly_all_of_it():
    size = len(load_task(TaskConfig(num_test=0), splits=("test",)).test)
    problems = load_task(TaskConfig(num_test=size - 1), splits=("test",)).test
    assert len({p.id for p in problems}) == size - 1


def test_answers_vote_without_their_spaces():
    row = {"numbers": [1, 2], "target": 3}
    assert countdown.reward("", " 1 + 2", **row).answer == "1+2"
    assert countdown.reward("", "1+", **row).answer is None


def test_training_problems_repeat_as_often_as_random_expressions_do():
    problems = load_task(TaskConfig(num_train=20_000), splits=("train",)).train
    counts = sorted(collections.Counter(p.id for p in problems).values(), reverse=True)
    assert len(problems) == 20_000 and len(counts) < 12_000 and counts[0] > 10
    assert len({p.prompt for p in problems}) > len(counts)  # the same problem with its digits in other orders
