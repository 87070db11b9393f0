"""Evaluations as tables: GitHub Markdown that also reads well in a terminal. All values are in percent (points).

An interval is the 95 % bootstrap over problems of `fastrl.statistics`; ± is half its width.
"""

from itertools import chain

from fastrl.statistics import Interval, paired_pass_difference, solved_and_lost


def pass_table(evaluations: dict[str, dict]) -> str:
    """pass@k of evaluations by name, one row each: `mean ±half-width` per k, – where an evaluation lacks the k.

    Raises ValueError for no evaluations.
    """
    if not evaluations:
        raise ValueError("nothing to tabulate: no evaluations were given")
    ks = sorted({int(k) for evaluation in evaluations.values() for k in evaluation["pass_at_k"]})
    header = ["pass@k, %", *(f"k={k}" for k in ks)]
    rows = [[name, *(_mean(evaluation, k) for k in ks)] for name, evaluation in evaluations.items()]
    return markdown([header, *rows])


def difference_table(pairs: dict[str, tuple[dict, dict]]) -> str:
    """Paired differences a − b of pass@k for evaluation pairs (a, b) by label, one column each.

    Every cell holds the mean difference and its 95 % interval in points, with a * where the interval excludes 0. The
    last rows count the problems that only a solves (newly solved) and that only b solves (lost) with any sample.
    Raises ValueError for no pairs, or a pair over different problems.
    """
    if not pairs:
        raise ValueError("nothing to tabulate: no pairs of evaluations were given")
    curves = [paired_pass_difference(a, b) for a, b in pairs.values()]
    moved = [solved_and_lost(eval_base=b, eval_new=a) for a, b in pairs.values()]
    rows = [["difference, points", *pairs]]
    for k in sorted(set(chain.from_iterable(curves))):
        rows.append([f"pass@{k}", *(difference_text(curve[k]) if k in curve else "–" for curve in curves)])
    rows.append(["newly solved", *(str(len(solved)) for solved, _ in moved)])
    rows.append(["lost", *(str(len(lost)) for _, lost in moved)])
    return markdown(rows) + "\n`*` the 95 % interval, paired over problems, excludes 0.\n"


def measure_table(measures: dict[str, float]) -> str:
    """Named numbers as they are, a row; empty for none."""
    return markdown([list(measures), [f"{value:.3f}" for value in measures.values()]]) if measures else ""


def _mean(evaluation: dict, k: int) -> str:
    interval = evaluation["pass_at_k"].get(str(k))
    if interval is None:
        return "–"
    return f"{100 * interval['mean']:.1f} ±{50 * (interval['high'] - interval['low']):.1f}"


def difference_text(interval: Interval) -> str:
    """`+1.2 [+0.3, +2.1] *` in points; a space where the interval holds 0."""
    mean, low, high = (
        f"{100 * value:+.1f}".replace("-", "−") for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} [{low}, {high}] {'*' if interval.excludes_zero else ' '}"


def markdown(rows: list[list[str]]) -> str:
    """A table. The first row is its header; the first column is aligned left, the others right."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append(f"| {' | '.join(padded)} |\n")
    return "".join(lines)
