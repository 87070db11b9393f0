"""Tier 4: what has been built on negative reinforcement, and beside it, each beside what it claims to improve.

Each cell begins from the [algorithm] of a file in configs/ and changes what it names. Rates are those that tier 0 chose
for the nearest family (NSR's, GRPO's): no sweep of their own. Plain NSR and GRPO at four updates are tier 1's.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SEEDS = (1, 2)
WEAK = 200  # supervised steps of the base from which NSR alone declines (tier 3)


def algorithm_of(name: str) -> dict[str, object]:
    """The [algorithm] settings of configs/NAME.toml, by their full names."""
    return dict(_flat(tomllib.loads((CONFIGS / f"{name}.toml").read_text())["algorithm"], "algorithm"))


def _flat(section: Mapping[str, object], path: str) -> Iterator[tuple[str, object]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", tuple(value) if isinstance(value, list) else value


NSR = {"algorithm.objective": "nsr"}
ANCHORS = {
    "nsr": NSR,
    "nsr.kl0.1": NSR | {"algorithm.kl_coef": 0.1},
    "nsr.kl1": NSR | {"algorithm.kl_coef": 1.0},
    "pmpo": algorithm_of("pmpo"),
    "pmpo.reject": algorithm_of("pmpo") | {"algorithm.pmpo.alpha": 0.0, "algorithm.kl_coef": 1.2},
    "pmpo.reject.unbounded": algorithm_of("pmpo") | {"algorithm.pmpo.alpha": 0.0, "algorithm.kl_coef": 0.5},
}
BASELINES = {
    "gspo": algorithm_of("gspo"),
    "grpo.sequence-mean": {"algorithm.objective": "grpo", "algorithm.reduction": "sequence-mean"},
    "dapo": algorithm_of("dapo"),
    "dapo.no-clip-higher": algorithm_of("dapo") | {"algorithm.ppo_clip.high": 0.2},
    "dapo.no-dynamic-sampling": algorithm_of("dapo") | {"algorithm.dynamic_sampling_rounds": 0},
    **{f"asymre.delta{d:+g}": algorithm_of("asymre") | {"algorithm.asymre.delta": d} for d in (-0.1, 0.0, 0.1)},
}
WEIGHED = {
    "a-nsr": algorithm_of("a-nsr"),
    "a-nsr.alone": algorithm_of("a-nsr") | NSR,
    "cw-nsr": algorithm_of("cw-nsr"),
    "high-entropy": algorithm_of("high-entropy"),
}
