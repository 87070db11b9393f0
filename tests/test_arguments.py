"""One rule for what is true or false on the command line, in every command."""

import inspect

import pytest

import fastrl.cli.entry as entry
from fastrl.cli import main
from fastrl.cli.arguments import booleans_of, parse_with_config, with_truths
from fastrl.cli.measuring import EvalCommand
from fastrl.cli.planning import PlanCommand
from fastrl.cli.training import TrainCommand


@pytest.mark.parametrize(
    ("words", "resume", "at_end"),
    [
        ([], False, True),
        (["--resume"], True, True),
        (["--resume", "--evaluation.at-end", "false"], True, False),
        (["--resume", "True", "--evaluation.at_end", "False"], True, False),
        (["--evaluation.at-end=false", "--resume=true"], True, False),
        (["--resume", "false", "--evaluation.at-end"], False, True),
    ],
)
def test_a_flag_alone_is_true_and_may_be_followed_by_true_or_false(words, resume, at_end):
    command = parse_with_config(TrainCommand, words, "train")
    assert (command.resume, command.config.evaluation.at_end) == (resume, at_end)


@pytest.mark.parametrize(("words", "value"), [([], True), (["auto"], "auto"), (["false"], False)])
def test_a_flag_that_may_be_auto_as_well(words, value):
    command = parse_with_config(PlanCommand, ["--model.compile", *words], "plan")
    assert command.config.model.compile == value


def test_booleans_of_a_command_are_found_at_any_depth():
    assert {"--resume", "--accept-changes", "--model.compile", "--model.trust-remote-code"} < set(
        booleans_of(TrainCommand)
    )
    assert "--evaluation.at-end" in set(booleans_of(EvalCommand))


def test_words_behind_a_flag_stay_where_they_are():
    words = ["a", "--text", "b", "--deep", "--port", "1", "--text=False"]
    expected = ["a", "--text", "True", "b", "--deep", "True", "--port", "1", "--text", "False"]
    assert with_truths(words, {"--text", "--deep"}) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--resume", "yes"], "--resume yes: it takes true or false, or nothing, which is true"),
        (["train", "--no-resume"], "there is no --no-resume: say --resume false"),
        (["train", "--resume", "a.toml"], "the config comes first: fastrl train a.toml --resume"),
        (["plan", "--optimizer.offload=1"], "--optimizer.offload 1: it takes true or false"),
    ],
)
def test_other_ways_end_in_what_would_be_right(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_commands_go_through_these_rules():
    for name, run in entry.COMMANDS.items():
        source = inspect.getsource(run)
        assert "parse(" in source or "parse_with_config(" in source, f"fastrl {name} parses in a way of its own"
