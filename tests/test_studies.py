"""The study's grid, its bands, and a report from results whose truth is known. No run is started."""

import json

import bands
import cells
import claims
import measures
import numpy as np
import pytest
import report
import results
import run
from folders import CellFolder

from fastrl.config.checks import check_train
from fastrl.statistics import bootstrap, pass_at_k


def test_every_cell_is_a_valid_run_with_a_folder_of_its_own(tmp_path):
    everything = [c for tier in cells.TIERS for c in cells.cells_of(tier)]
    everything += cells.sweeps_needed(everything)
    names = {c.id: c for c in everything}
    assert len(names) == len({c.id for c in everything}) and len({CellFolder(c).path for c in names.values()}) == len(
        names
    )
    for cell in names.values():
        config = check_train(cells.train_config(cell, tmp_path / cell.id, lr=1e-5 if cell.selection else None))
        assert config.run.num_steps % cells.FOLLOW_EVERY == 0
        assert config.optimizer.lr == cell.settings.get("optimizer.lr", 1e-5)
    counts = [len(cells.cells_of(tier)) for tier in cells.TIERS]
    assert counts == [12, 27, 36, 28, 36, 32, 8, 8, 26]
    with pytest.raises(ValueError, match="tier 7: known tiers are 0, 1, 2, 3, 4, 5, 6, 8, 9"):
        cells.cells_of(7)


def test_added_seeds_are_the_same_cells():
    cells_of_both = run.choose_cells(run.Study(1, only=("tier1.nsr", "tier1.psr"), seeds=(4, 5)))
    assert [c.id for c in cells_of_both] == [f"tier1.{n}.seed{s}" for s in (4, 5) for n in ("psr", "nsr")]
    assert cells_of_both[0].settings == cells.cells_of(1)[0].settings
    with pytest.raises(ValueError, match="tier 1 has no cell tier2"):
        run.choose_cells(run.Study(1, only=("tier2",)))


def test_selection_has_a_seed_and_a_draw_of_problems_of_its_own():
    selection = cells.train_config(cells.cells_of(0)[0], cells.ROOT)
    study = [cells.train_config(c, cells.ROOT, lr=1e-5) for tier in cells.TIERS[1:] for c in cells.cells_of(tier)]
    assert selection.run.seed not in {c.run.seed for c in study}
    assert selection.task.seed not in {c.task.seed for c in study}


def test_bands_of_one_seed_are_the_bootstrap_over_problems():
    counts_1P = np.random.default_rng(0).integers(0, 17, size=(1, 80))
    ours = bands.band(counts_1P, 16, 4)
    theirs = bootstrap(pass_at_k(counts_1P[0], 16, 4))
    assert ours.mean == pytest.approx(theirs.mean, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bands_grow_with_disagreement_of_seeds():
    same = np.tile(np.arange(17), (3, 4))
    shifted = np.clip(same + np.array([[-4], [0], [4]]), 0, 16)
    narrow, wide = (bands.band(counts, 16, 1) for counts in (same, shifted))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    values_SP = bands.pass_values(shifted, 16, 4)
    assert bands.mean_band(values_SP - values_SP) == bands.Interval(0, 0, 0)


def test_crossing_interpolates_at_the_first_time():
    x = np.array([[0.2, 0.4, 0.3, 0.6], [0.2, 0.25, 0.27, 0.26], [0.5, 0.6, 0.7, 0.8]])
    y = np.array([[1.0, 0.8, 0.7, 0.5], [1.0, 0.9, 0.8, 0.7], [0.9, 0.8, 0.7, 0.6]])
    assert bands.crossing(x, y, 0.3) == pytest.approx([0.9, 0.8, 0.9])  # half way; never: the highest; at once


def slower(num_seeds: int, num_problems: int) -> tuple[np.ndarray, np.ndarray]:
    """Two runs on one path, the second half as fast: equal at equal pass@1, unequal at equal steps."""
    rng = np.random.default_rng(1)
    ability_P = rng.uniform(0.05, 0.6, num_problems)
    times = np.arange(9) / 8
    paths = []
    for speed in (1.0, 0.5):
        gain_T1 = 1 + 0.6 * speed * times[:, None]
        paths.append(rng.binomial(64, np.clip(ability_P * gain_T1, 0, 1), size=(num_seeds, 9, num_problems)))
        paths[-1][:, 0] = np.round(64 * ability_P)
    return paths[0], paths[1]


def test_equal_pass_at_1_tells_slower_from_different():
    fast, slow = slower(3, 60)
    last_slow, last_fast = (bands.pass_values(counts[:, -1], 64, 1) for counts in (slow, fast))
    at_equal_steps = bands.mean_band(last_slow - last_fast)
    assert bands.verdict(at_equal_steps) == "lower"
    _, value = bands.difference_at_equal_pass_at_1(slow, fast, 64, 16, 0.9)
    assert bands.verdict(value) == "undecided" and abs(value.mean) < 0.02
    different = np.minimum(fast + 10 * (fast < 10), 64)  # the hardest problems solved more often
    different[:, 0] = fast[:, 0]
    assert bands.verdict(bands.difference_at_equal_pass_at_1(different, fast, 64, 16, 0.9)[1]) == "higher"


@pytest.mark.parametrize(
    ("predicts", "found", "expected"),
    [
        ("higher", "higher", "supported"),
        ("higher", "lower", "contradicted: lower"),
        ("same", "lower", "contradicted: lower"),
        ("same", "undecided", "undecided"),
        ("lower", "undecided", "undecided"),
    ],
)
def test_judgements(predicts, found, expected):
    assert claims.judge(predicts, found) == expected


@pytest.fixture
def collected(tmp_path, monkeypatch):
    """results/ with a base and tier 1's PSR and NSR: NSR keeps hard problems that PSR loses."""
    rng = np.random.default_rng(2)
    ids = [f"p{i}" for i in range(120)]
    scalars = {"mean_token_entropy": 0.5, "distinct_correct_answers": 3.0, "mean_length": 9.0, "truncated_share": 0.0}

    def tested_row(chances_P: np.ndarray) -> dict:
        return scalars | {"num_samples": 256, "ids": ids, "num_correct": rng.binomial(256, chances_P).tolist()}

    chances_P = np.where(np.arange(120) < 40, 0.01, 0.4)
    followed = {"num_samples": 64, "num_correct": rng.binomial(64, chances_P).tolist(), "mean_token_entropy": 0.5}
    base = {"test": tested_row(chances_P), "followed": followed}
    rows = []
    for seed in (1, 2, 3):
        for name, hard, easy in (("psr", 0.0, 0.7), ("nsr", 0.01, 0.6)):
            final_P = np.where(np.arange(120) < 40, hard, easy)
            path = [rng.binomial(64, chances_P + t * (final_P - chances_P)).tolist() for t in (0.5, 1.0)]
            followed = {"steps": [15, 30], "num_samples": 64, "num_correct": path, "entropy": [0.5, 0.4]}
            row = {
                "name": f"tier1.{name}",
                "seed": seed,
                "lr": 3e-5,
                "warmup": 0,
                "num_steps": 30,
                "followed": followed,
            }
            metrics = {"clip/positive": 0.01, "clip/negative": 0.02}
            ledger = [{"step": 30, "moved": {"left_penalised": 0.1}, "mass": {"rest": 0.2}}]
            rows.append(row | {"test": tested_row(final_P), "metrics": metrics, "ledger": ledger})
    one_digit = scalars | {"distinct_answers": 2.0}
    real = [
        {"name": n, "seed": 0, "test": one_digit | tested_row(np.full(120, p))} for n, p in (("psr", 0), ("nsr", 0.3))
    ]
    real_cpu = {"base": one_digit | tested_row(np.full(120, 0.02)), "rows": real}
    tier2 = [row | {"name": f"tier2.{row['name'].removeprefix('tier1.')}.u4.clip.kept"} for row in rows]
    for name, content in (("base", base), ("tier1", rows), ("tier2", tier2), ("real_cpu", real_cpu)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.read.cache_clear()
    yield tmp_path
    results.read.cache_clear()


def test_the_report_says_what_the_results_say_and_nothing_about_the_rest(collected, tmp_path):
    one_more = [row | {"seed": 4} for row in results.read("tier1") if row["name"] == "tier1.nsr"][:1]
    results.read("tier1").extend(one_more)  # a fourth seed of NSR alone: pairs use the other three
    assert measures.between("tier1.nsr", "tier1.psr", measures.pass_at(256))().mean > 0
    assert results.cell("tier1.nsr").seeds == [1, 2, 3, 4]
    text = report.fill(report.README.read_text(), report.sections())
    rows = {cells[2].strip(): cells for line in text.splitlines() if len(cells := line.split("|")) == 7}
    assert rows["NSR is above PSR at k = 256"][5].strip() == "supported"
    assert rows["PSR falls below the base at k = 256"][5].strip() == "supported"
    assert rows["NSR alone improves pass@1 over the base"][5].strip() == "supported"
    assert rows["NSR is above PSR at k = 64"][5].strip() == "supported"  # of the pretrained model
    assert "| nsr − base |" in text and "| u4.clip.kept | 3 | −" in text
    assert rows["λ = 1 loses the tail: below λ = 0.1 at k = 256"][5].strip() == "needs more runs"
    assert "| psr | 3 | 3e-05 |" in text and text.count("needs more runs") > 10
    assert report.fill(text, report.sections()) == text
    report.draw_curves(results.cells("tier1"), tmp_path / "a.png")
    report.draw_paths(results.cells("tier1"), tmp_path / "b.png")
    report.draw_bases(
        {200: results.cells("tier1"), 600: results.cells("tier1")}, results.cells("tier1"), tmp_path / "c.png"
    )
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("a.png", "b.png", "c.png"))
    with pytest.raises(ValueError, match="no markers <!-- tier1 -->"):
        report.fill("nothing", {"tier1": ""})


def test_tier_9_is_compared_with_the_model_that_reads_critiques(collected):
    """Its start is no base of other tiers: pass@1 of 25 %, and other followed problems than theirs."""
    start = results.base()["test"] | {"num_samples": 64, "num_correct": [16] * 120}
    results.base()["test.countdown-told"] = start
    results.base()["followed.countdown-told"] = start | {"num_correct": [8] * 120}
    window = {f"refine/{key}": 0.25 for key in report.REFINED.values()}
    later = window | {"refine/rescued_share": 0.75}
    common = {"start": "test.countdown-told", "windows": {"first": window, "last": later}, "test": start}
    names = {"tier1.nsr": "tier9.nsr", "tier1.psr": "tier9.critique-rules"}
    rows = [row | common | {"name": names[row["name"]]} for row in results.read("tier1")]
    (collected / "tier9.json").write_text(json.dumps(rows))
    assert (results.cell("tier9.nsr").path_STP[:, 0] == 8).all() and results.cell("tier9.nsr").path_STP.shape[1] == 3
    assert measures.against_base("tier9.nsr", measures.pass_at(1))() == bands.Interval(0, 0, 0)
    assert "| base |  |  | 25.0 [25.0, 25.0] |" in report.curve_table(9)
    assert report.refine_table().splitlines()[2].startswith("| critique-rules | 0.25 → 0.25 | 0.25 → 0.75 |")
    equal = report.equal_table(9, "nsr").splitlines()
    assert equal[0].startswith("| objective − NSR, pass@64 |") and equal[2].startswith("| critique-rules | +0.0 [")


def test_the_measures_of_tier_7_stand_beside_those_of_the_model_before_training(collected):
    """Two seeds of one cell: the mean and the range; 120 problems with 16 of 64 right are 25 %."""
    evaluation = results.base()["test"] | {"num_samples": 64, "num_correct": [16] * 120}
    truth = dict.fromkeys(("hallucination", "accuracy", "abstained_solvable", "abstained_unsolvable"), 0.125)
    results.base()["test.countdown-abstain"] = evaluation | {"measures": truth | {"truthfulness": -0.5}}
    rows = [
        {
            "name": "tier5.truthrl.ternary",
            "seed": seed,
            "warmup": 0,
            "start": "test.countdown-abstain",
            "windows": {},
            "test": evaluation | {"measures": truth | {"truthfulness": value}},
        }
        for seed, value in ((1, 0.25), (2, 0.5))
    ]
    (collected / "tier5.json").write_text(json.dumps(rows))
    before, cell = report.rewards_table("truthrl").splitlines()[2:]
    assert (
        before.startswith("| before: test.countdown-abstain |  | 25.0 [25.0, 25.0] |") and "| -50.0 | 12.5 |" in before
    )
    assert cell.startswith("| ternary | 2 | 25.0") and "| 37.5 (25.0 to 50.0) | 12.5 (12.5 to 12.5) |" in cell
    assert report.rewards_table("ttrl") == "not run"


def test_a_step_weighs_the_tokens_of_all_ranks_alike(collected):
    """Three tokens gain ¼ nat and one loses ¾: nothing; a step of −½ beside it: −¼ in the mean."""
    first, second = ({"num": 3, "entropy_change": 0.25}, {"num": 1, "entropy_change": -0.75})
    steps = [[first, second], [{"num": 5, "entropy_change": -0.5}]]
    row = results.read("tier1")[0] | {"name": "tier6.nsr"}
    ranked = [[c | {"mode_change": -c["entropy_change"]} for c in step] for step in steps]
    row["ledger"] = [{"update": {}}, *({"update": {"negative": {"by_rank": step}}} for step in ranked)]
    (collected / "tier6.json").write_text(json.dumps([row]))
    (shown,) = report.step_table().splitlines()[2:]
    assert shown == "| nsr | penalised | 2 | +250.00 [+0.00, +500.00] | −250.00 [−500.00, +0.00] |"


def test_runs_on_other_problems_are_refused(collected):
    base = json.loads((collected / "base.json").read_text())
    base["test"]["ids"][0] = "another"
    (collected / "base.json").write_text(json.dumps(base))
    with pytest.raises(ValueError, match="tested on other problems than the base"):
        results.cells("tier1")


def test_contrasts_are_differences_of_mean_differences(collected):
    at_64, pair = measures.pass_at(64), ("tier1.nsr", "tier1.psr")
    plain = measures.between(*pair, at_64)()
    assert plain.mean > 0.1
    assert measures.mean_between([pair, pair, pair[::-1]], at_64)().mean == pytest.approx(plain.mean / 3)
    assert measures.contrast([pair], [pair, pair], at_64)() == bands.Interval(0, 0, 0)
    assert measures.contrast([pair], [pair[::-1]], at_64)().mean == pytest.approx(2 * plain.mean)
    assert measures.contrast([pair], [("tier1.nsr", "tier2.psr.u1.clip.sum")], at_64)() is None


def test_a_band_over_seeds_needs_two_of_them_and_entropy_is_compared_where_pass_at_1_is_equal(collected):
    at_end = measures.between("tier1.nsr", "tier1.psr", measures.entropy)()
    assert at_end == bands.Interval(0, 0, 0)  # every row says 0.5
    for row in results.read("tier1"):
        row["followed"]["entropy"] = [0.45, 0.4] if row["name"] == "tier1.nsr" else [0.3, 0.1]
    halfway = measures.entropy_at_equal_pass_at_1("tier1.nsr", "tier1.psr", 0.5)()
    assert 0.05 < halfway.low <= halfway.mean <= halfway.high < 0.3
    del results.read("tier1")[2:]  # both of seed 1
    assert measures.between("tier1.nsr", "tier1.psr", measures.entropy)() is None
    assert measures.between("tier1.nsr", "tier1.psr", measures.pass_at(256))() is not None
    assert measures.between("tier1.nsr", "tier3.long.nsr", measures.pass_at(256))() is None


def test_growth_is_a_log_ratio_of_the_windows_that_were_collected(collected):
    assert measures.metric_growth("tier1.nsr", "grad_norm")() is None
    for row, factor in zip(results.read("tier1")[1::2], (2, 4, 8), strict=True):
        row["windows"] = {"first": {"grad_norm": 1.5}, "last": {"grad_norm": 1.5 * factor}}
    grown = measures.metric_growth("tier1.nsr", "grad_norm")()
    assert grown.mean == pytest.approx(np.log(4)) and grown.high == pytest.approx(np.log(8))
