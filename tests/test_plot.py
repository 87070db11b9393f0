"""The pass@k figure and the tables of evaluations."""

import subprocess
import sys

import pytest

from fastrl.records.plot import _spread, pass_at_k_figure, plot_pass_at_k, title_of
from fastrl.records.plot_style import k_ticks
from fastrl.records.tables import difference_table, pass_table


def evaluation(*means: float, num_samples: int | None = None, num_correct: tuple[int, ...] = ()) -> dict:
    """pass@1, 2, 4, … with intervals 0.02 below and 0.04 above."""
    ks = [2**i for i in range(len(means))]
    curve = {str(k): {"mean": m, "low": m - 0.02, "high": m + 0.04} for k, m in zip(ks, means, strict=True)}
    problems = [{"id": i, "num_correct": count} for i, count in enumerate(num_correct)]
    return {"num_samples": num_samples or ks[-1], "pass_at_k": curve, "problems": problems}


EVALUATIONS = {
    "base": evaluation(0.30, 0.50, 0.70, 0.80, 0.90),
    "PSR": evaluation(0.44, 0.56, 0.68, 0.76, 0.86),
    "NSR $_0": evaluation(0.43, 0.58, 0.72, 0.79, 0.87),
}


def test_lines_and_bands_show_the_evaluations_in_percent():
    (axes,) = pass_at_k_figure(EVALUATIONS).axes
    lines = axes.get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 4, 8, 16]] * 3
    assert list(lines[1].get_ydata()) == pytest.approx([44, 56, 68, 76, 86])
    band = axes.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((42, 90))
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "4", "8", "16"]
    assert axes.get_xscale() == "log"
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3


def test_a_curve_that_ends_earlier_says_where():
    figure = pass_at_k_figure({"long": evaluation(0.1, 0.2, 0.3), "short": evaluation(0.2, 0.4)})
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"long  30.0", "short  40.0 @2", "10.0", "20.0"}


def test_one_sample_per_problem_shows_a_bar_for_the_band():
    (axes,) = pass_at_k_figure({"greedy": evaluation(0.5)}).axes
    (bar,) = [c for c in axes.collections if type(c).__name__ == "LineCollection"]
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([48, 54])
    assert [text.get_text() for text in axes.texts] == ["greedy  50.0"]


def test_texts_neither_overlap_nor_leave_the_figure():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    close = {f"a rather long name no. {i} of many": evaluation(0.5 + i / 500, 0.6, 0.97 + i / 1000) for i in range(6)}
    figure = pass_at_k_figure(close, "A title", "A caption of many words. " * 20)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    labels, frame = figure.axes[0].texts, figure.bbox
    boxes = [text.get_window_extent(renderer) for text in [*labels, *figure.texts, figure.axes[0].xaxis.label]]
    assert len(boxes) == 6 + 6 + 2 + 1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)


def crowded() -> dict[str, dict]:
    """Three evaluations of four problems whose bands overlap: 1, 2, 2 or 3 of 4 samples are correct."""
    counts = {"first": (1, 1, 1, 1), "second": (2, 2, 2, 2), "third": (1, 2, 2, 3)}
    found = {n: evaluation(0.4 + i / 100, 0.6, 0.8, num_correct=c) for i, (n, c) in enumerate(counts.items())}
    for one in found.values():
        one["problems"] = [problem | {"num_samples": 4} for problem in one["problems"]]
    return found


def test_three_overlapping_bands_give_way_to_paired_differences():
    figure = pass_at_k_figure(crowded(), caption="A caption.")
    axes, below = figure.axes
    assert not axes.collections and len(axes.lines) == 3
    assert [text.get_text() for text in figure.texts][1].startswith("A caption. Below: differences to first, paired")
    zero, second, third = below.lines
    assert list(zero.get_ydata()) == [0, 0]
    assert list(second.get_ydata()) == pytest.approx([25, 100 / 3, 0])  # ½ − ¼, ⅚ − ½, 1 − 1
    assert third.get_ydata()[0] == pytest.approx(25)  # mean of ¼, ½, ½, ¾
    intervals = below.collections[0].get_segments()  # the same difference for every problem: no width
    assert tuple(intervals[0][:, 1]) == pytest.approx((25, 25))
    places = [line.get_xdata()[0] for line in (second, third)]
    assert (
        places[0] < 1 < places[1]
        and third.get_xdata()[-1] < below.get_xlim()[1]
        and below.get_xlim() == axes.get_xlim()
    )
    assert [tick.get_text() for tick in below.get_xticklabels()] == ["1", "2", "4"]


def test_two_bands_or_other_problems_are_drawn_as_they_are():
    two = dict(list(crowded().items())[:2])
    assert len(pass_at_k_figure(two).axes) == 1 and len(pass_at_k_figure(two).axes[0].collections) == 2
    others = crowded()
    others["third"]["problems"][0]["id"] = "another"
    figure = pass_at_k_figure(others)
    assert len(figure.axes) == 1 and len(figure.axes[0].collections) == 3
    assert figure.texts[1].get_text().endswith("Not of the same problems: no paired differences.")


def test_equal_curves_are_both_seen():
    same = {"a": evaluation(0.5, 0.6), "b": evaluation(0.5, 0.6)}
    first, second = pass_at_k_figure(same).axes[0].lines
    assert first.get_linewidth() > second.get_linewidth() and first.get_markersize() > second.get_markersize()
    assert first.get_linestyle() == "-" != second.get_linestyle()


def test_the_title_names_task_size_and_model_where_they_are_one():
    facts = {"task": "math", "split": "test", "num_problems": 300, "model": "Qwen/Qwen3-0.6B"}
    one = evaluation(0.1, 0.2) | facts
    assert title_of({"a": one}) == "math test · 300 problems × 2 samples · Qwen/Qwen3-0.6B"
    assert title_of({"a": one, "b": one | {"model": "other"}}) == "math test · 300 problems × 2 samples"
    assert title_of({"a": evaluation(0.1)}) == ""
    assert pass_at_k_figure({"a": one}).texts[0].get_text().startswith("math test")


def test_spread_moves_heights_as_little_as_possible():
    assert _spread([10, 50, 90], 5, 100) == [10, 50, 90]
    assert _spread([50, 50], 4, 100) == [48, 52]
    assert _spread([10, 49, 51, 50.5], 4, 100) == pytest.approx([10, 46.166667, 50.166667, 54.166667])
    assert _spread([98, 100], 4, 100) == [96, 100]


def test_ticks_leave_out_a_last_k_too_close_to_a_power():
    assert k_ticks([1, 2, 4, 8, 12]) == [1, 2, 4, 8, 12]
    assert k_ticks([1, 2, 4, 8, 10]) == [1, 2, 4, 8]


def test_files_are_what_they_say_and_reproducible(tmp_path):
    paths = [tmp_path / "deep" / "curve.png", tmp_path / "curve.svg", tmp_path / "again.svg", tmp_path / "curve.pdf"]
    plot_pass_at_k(EVALUATIONS, paths, title="A title", caption="10 % & <5 $")
    png = paths[0].read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") == 1600
    assert paths[1].read_bytes() == paths[2].read_bytes()
    assert b"</svg>" in paths[1].read_bytes()
    assert paths[3].read_bytes()[:5] == b"%PDF-"
    plot_pass_at_k(EVALUATIONS, str(tmp_path / "one.png"), title="A title", caption="10 % & <5 $")
    assert (tmp_path / "one.png").read_bytes() == png


def test_plot_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"curve\.jpg; the suffix must be one of \.png, \.svg, \.pdf"):
        plot_pass_at_k(EVALUATIONS, [tmp_path / "curve.png", tmp_path / "curve.jpg"])
    with pytest.raises(ValueError, match="no evaluations"):
        plot_pass_at_k({}, tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []


def test_plot_leaves_pyplot_alone(tmp_path):
    code = (
        "import sys; from fastrl.records.plot import plot_pass_at_k\n"
        "curve = {'pass_at_k': {'1': {'mean': 0.1, 'low': 0.0, 'high': 0.2}}}\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plot_pass_at_k({{'a': curve}}, {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_pass_table():
    table = pass_table({"base": evaluation(0.294, 0.5), "W-REINFORCE|0.1": evaluation(0.415)})
    assert table.splitlines() == [
        r"| pass@k, %        |       k=1 |       k=2 |",
        r"| ---------------- | --------: | --------: |",
        r"| base             | 29.4 ±3.0 | 50.0 ±3.0 |",
        r"| W-REINFORCE\|0.1 | 41.5 ±3.0 |         – |",
    ]
    with pytest.raises(ValueError, match="no evaluations"):
        pass_table({})


def test_difference_table():
    # pass@1 rises by ½ on each problem; pass@2 by 1 on the first and 0 on the others. Resamples hold the first problem
    # Binomial(4, ¼) times: never with probability .32, three times or more with .051, four times with .004.
    base = evaluation(0.0, 0.0, num_samples=2, num_correct=(0, 1, 1, 1))
    new = evaluation(0.0, 0.0, num_samples=2, num_correct=(1, 2, 2, 2))
    table = difference_table({"new − base": (new, base), "base − new": (base, new)})
    assert table.splitlines() == [
        "| difference, points |             new − base |             base − new |",
        "| ------------------ | ---------------------: | ---------------------: |",
        "| pass@1             | +50.0 [+50.0, +50.0] * | −50.0 [−50.0, −50.0] * |",
        "| pass@2             |  +25.0 [+0.0, +75.0]   |  −25.0 [−75.0, +0.0]   |",
        "| newly solved       |                      1 |                      0 |",
        "| lost               |                      0 |                      1 |",
        "",
        "`*` the 95 % interval, paired over problems, excludes 0.",
    ]
    with pytest.raises(ValueError, match="no pairs"):
        difference_table({})
