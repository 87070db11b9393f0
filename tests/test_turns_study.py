"""The study of credit by turns: its correlation by hand, and one cell in miniature on a model made on the spot."""

import json
import math

import numpy as np
import pytest
import turns_report
import turns_study
from test_twenty_questions import CHARACTERS

from fastrl.config.checks import check_train
from fastrl.config.schema import ScratchConfig
from fastrl.policy.scratch import scratch_model, scratch_tokenizer


def row_of(name: str, gains: list[list[float]], num_correct: list[int], seed: int = 1) -> dict:
    return {
        "name": name, "seed": seed, "num_samples": 2, "num_correct": num_correct, "gains": gains, "turn_worth": None,
        "questions": 1.0, "bits_per_question": 1.0, "wasted_share": 0.0,
    }  # fmt: skip


def test_correlations_and_slopes_by_hand():
    """x = 0, 1, 2 and y = 0, 1, 1: covariance 1/3, variances 2/3 and 2/9, so r = √3/2 and the slope is 1/2."""
    row = row_of("base", [[0, 0, 0.0, 0.0], [0, 1, 1.0, 1.0], [1, 0, 2.0, 1.0]], [1, 2])
    assert turns_report.correlation(turns_report.sums(row, None).sum(axis=0)[None]) == pytest.approx(3**0.5 / 2)
    assert turns_report.slope([row, row]) == pytest.approx(0.5)
    first = turns_report.sums(row, 0)
    assert first.tolist() == [[1, 0, 0, 0, 0, 0], [1, 2, 1, 4, 1, 2]]
    assert turns_report.wins([row]).tolist() == [[0.5, 1.0]]
    row["levels"] = [[0, 0, -2.0, -5.0], [1, 0, -2.0, -4.0], [0, 1, -1.0, -0.5]]
    assert "| base | -2.50 | +0.50 | – | – | – |" in turns_report.levels({"base": [row]})


def test_the_report_pairs_games_and_seeds():
    rng = np.random.default_rng(0)
    exact = rng.choice([0.0, 0.7, 1.4], size=60)
    known = [[game, 0, x, x] for game, x in enumerate(exact)]
    guessed = [[game, 0, x, y] for (game, _, x, _), y in zip(known, rng.normal(size=60), strict=True)]
    cells = {
        "grpo": [row_of("grpo", guessed, [1] * 60, seed) for seed in (1, 2)],
        "grpo+belief": [row_of("grpo+belief", known, [2] * 60, seed) for seed in (2, 3)],
    }
    manners = turns_report.manners(cells).splitlines()
    assert "| 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | – | – | – | 1.00 |" in manners[3]
    (line,) = [row for row in turns_report.differences(cells).splitlines() if row.startswith("| grpo+belief")]
    assert line.startswith("| grpo+belief − grpo | 50.0 [50.0, 50.0] |")
    assert turns_report.differences(cells).count("\n") == 2  # nobody else ran


def test_every_cell_is_a_valid_run(tmp_path, monkeypatch):
    monkeypatch.setattr(turns_study, "start", lambda work, name: work / name)
    study = turns_study.Study(work=tmp_path)
    for name, (config, settings) in turns_study.CELLS.items():
        check_train(turns_study.config_of(study, config, settings, tmp_path / name, 1))
    assert {pair for pairs in turns_report.PAIRS for pair in pairs} == {*turns_study.CELLS, *turns_study.BASES}


@pytest.fixture
def study(tmp_path):
    """Two games a step, three held-out ones, and initial models that know nothing but may stop."""
    config = ScratchConfig(CHARACTERS + "PR", hidden_size=32, num_layers=1, num_heads=2, intermediate_size=32)
    tokenizer = scratch_tokenizer(config)
    model = scratch_model(config, tokenizer, seed=0)
    for name in ("twenty-questions", "tagged-questions"):
        model.save_pretrained(tmp_path / f"start-{name}")
        tokenizer.save_pretrained(tmp_path / f"start-{name}")
    sizes = {"num_steps": 1, "num_games": 3, "prompts": 2, "seeds": (1,)}
    return turns_study.Study(work=tmp_path, results=tmp_path / "out.json", **sizes)


def test_a_cell_trains_plays_and_is_not_run_twice(study, capsys):
    study.only = ("base", "rlvmr", "grpo+belief")
    turns_study.main(study)
    rows = json.loads(study.results.read_text())
    assert [row["name"] for row in rows] == ["base", "grpo+belief", "rlvmr"]
    for row in rows:
        assert len(row["num_correct"]) == 3 and sum(row["reasons"].values()) == 12
        starts = [level for level in row["levels"] if level[1] == 0]
        assert [game for game, *_ in starts] == [0, 1, 2]
        assert all(exact == pytest.approx(-math.log(8), abs=1e-4) for _, _, exact, _ in starts)
        assert all(-6 < belief < -2 for *_, belief in starts)  # a random model of 51 tokens: about −ln 51
    assert rows[0]["turn_worth"] is None and rows[2]["turn_worth"] is not None
    capsys.readouterr()
    turns_study.main(study)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="no cell psr"):
        turns_study.main(turns_study.Study(only=("psr",), work=study.work, results=study.results))
