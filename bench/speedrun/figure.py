"""The page's main rows as a picture: three operations beside their peers, and the update beside TRL's."""

from collections.abc import Sequence
from pathlib import Path

from kernel_bars import FLOORS
from machine import Row as Timing
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import newest, times_floor

SHAPES = {"log-prob + entropy": "8192 × 151936", "loss + gradient": "8192 × 151936"}
SHAPES |= {"loss + dX + dW": "8192 × 4096 × 151936"}
WHO = {"fastrl": "#0072B2", "compiled": "#E69F00", "liger": "#009E73"}
NAMES = {"compiled": "torch.compile", "liger": "Liger"}
UPDATES = {"train-0.6b-eager": "fastrl, plain blocks", "train-0.6b-compiled": "fastrl, compiled blocks"}
UPDATES |= {"train-0.6b-trl-8": "TRL"}


def draw(lines: Sequence[dict], path: Path, card: str = "H100") -> None:
    """What is measured on the card; a row that is not is left out."""
    lines = [line for line in newest(lines) if card in line["card"] and not line["is_dry"]]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _kernels(left, lines)
    _updates(right, lines)
    figure.savefig(path, dpi=120)


def _kernels(axes: Axes, lines: Sequence[dict]) -> None:
    timings = [Timing(**timing) for line in lines for timing in line.get("timings", ())]
    for place, (what, shape) in enumerate(SHAPES.items()):
        of_shape = [t for t in timings if t.shape == shape]
        for offset, who in enumerate(WHO):
            found = [t for t in of_shape if t.what == what and t.who.split()[0] == who and t.wall_ms]
            ratio = times_floor(found[0], of_shape) if found else None
            if ratio:
                height, middle = ratio[0], place + 0.27 * (offset - 1)
                axes.bar(middle, height, 0.25, color=WHO[who], label=NAMES.get(who, who) if place == 0 else None)
                mark = "*" if "(" in found[0].who else ""  # it computes less
                axes.annotate(f"{height:.2f}{mark}", (middle, height), ha="center", va="bottom", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(SHAPES)), [f"{what}\nfloor: {FLOORS[what].removeprefix('floor: ')}" for what in SHAPES])
    axes.set_ylabel("time, as a multiple of the floor's")
    axes.set_title("kernels, 8192 tokens × 151,936 (* without entropy or weights)", fontsize=10)
    axes.margins(y=0.1)
    axes.legend(frameon=False)


def _updates(axes: Axes, lines: Sequence[dict]) -> None:
    rates = {line["row"]: line["tokens_per_s"] for line in lines if line.get("tokens_per_s")}
    shown = [row for row in UPDATES if row in rates]
    bars = axes.barh([UPDATES[row] for row in shown], [rates[row] / 1e3 for row in shown])
    for row, bar in zip(shown, bars, strict=True):
        bar.set_color("#999999" if "trl" in row else WHO["fastrl"])
        axes.annotate(f" {rates[row] / 1e3:.1f}", (bar.get_width(), bar.get_y() + bar.get_height() / 2), va="center")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("thousand tokens a second")
    axes.set_title("Qwen3-0.6B, updates of 64 × 1024 tokens", fontsize=10)
