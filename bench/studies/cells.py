"""What the study runs: cells, each one training run with its own seed and settings, by tier.

Every cell starts from configs/countdown.toml, so the model, the batch (64 prompts x 8 rollouts), the budget and data
are the demo's. A cell names only what it changes. The learning rate of tiers 1 to 6 is not a setting: one rule chooses
it for every family of objectives (`selection`), on other draws of problems and with a seed of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from family import ANCHORS, BASELINES, SEEDS, WEAK, WEIGHED
from told import CRITIQUE, DIRECTION, TOLD

from fastrl.config.files import load_config
from fastrl.config.schema import TrainConfig
from fastrl.config.settings import with_settings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NUM_STEPS, LONG_STEPS, TOLD_STEPS = 150, 405, 60  # multiples of FOLLOW_EVERY
NUM_TEST, NUM_FOLLOWED = 300, 100  # test problems; validation problems evaluated along the way
FOLLOW_EVERY, FOLLOW_SAMPLES = 15, 64
LEARNING_RATES = (1.5e-5, 3e-5, 6e-5, 1.2e-4)
SELECTION_SEED, SELECTION_DATA_SEED = 100, 1  # another order, and other draws of training and validation problems
NO_CLIP = {"algorithm.ppo_clip.low": 0.999, "algorithm.ppo_clip.high": 1e6}  # the ratio stays, its bounds never act

OBJECTIVES = {
    "psr": {"algorithm.objective": "psr"},
    "nsr": {"algorithm.objective": "nsr"},
    "w-reinforce-0.05": {"algorithm.objective": "w-reinforce", "algorithm.w_reinforce.positive_weight": 0.05},
    "w-reinforce-0.1": {"algorithm.objective": "w-reinforce", "algorithm.w_reinforce.positive_weight": 0.1},
    "w-reinforce-0.2": {"algorithm.objective": "w-reinforce", "algorithm.w_reinforce.positive_weight": 0.2},
    "w-reinforce-1": {"algorithm.objective": "w-reinforce", "algorithm.w_reinforce.positive_weight": 1.0},
    "grpo": {"algorithm.objective": "grpo"},
    "dr-grpo": {"algorithm.objective": "dr-grpo", "algorithm.reduction": "constant"},
    "rloo": {"algorithm.objective": "rloo"},
}
PPO = {  # the [algorithm] of configs/ppo-countdown.toml
    "algorithm.objective": "none",
    "algorithm.signals": ("gae",),
    "algorithm.gae.kl_coef": 1e-3,
    "algorithm.gae.critic_lr": 3e-4,
}
LEDGER = {"ledger.every": FOLLOW_EVERY, "ledger.num_samples": 256, "ledger.gradients": True}
REWARDED = {  # tier 5: by the part of its cells' names
    "truthrl": {"task.name": "countdown-abstain"},
    "rlcr": {"task.name": "countdown-confidence", "algorithm.correct_threshold": 0.01},
    "ttrl": {"task.name": "countdown-values", "batch.prompts_per_step": 16, "batch.rollouts_per_prompt": 32},
    "spurious": {},
}
STARTS = {  # whose warm start, configs/NAME-warmup.toml, a task's cells begin from
    "countdown-abstain": "truthrl",
    "countdown-confidence": "rlcr",
    "countdown-told": "critique",
}
RANKS = {"ledger.every": 3, "ledger.num_samples": 64, "ledger.num_positions": 512}  # a step's own tokens, 20 times
REDUCTIONS = {"kept": "token-mean-kept", "all": "token-mean-all", "sum": "constant"}


@dataclass(frozen=True)
class Cell:
    """One training run. `selection` names the sweep that chose its learning rate; empty: the settings hold it.

    `warmup` is the number of supervised steps of the initial model, 0 for the demo's own (1600). A cell that is not
    followed is evaluated at its end alone.
    """

    name: str
    seed: int
    settings: dict[str, object] = field(hash=False)
    selection: str = ""
    num_steps: int = NUM_STEPS
    test_samples: int = 256
    is_followed: bool = True
    warmup: int = 0

    @property
    def id(self) -> str:
        return f"{self.name}.seed{self.seed}"

    @property
    def task(self) -> str:
        return self.settings.get("task.name", "countdown")

    @property
    def start(self) -> str:
        """The initial model's evaluation on the test problems, by its name in results/base.json."""
        task = f".{self.task}" if self.task != "countdown" else ""
        return (f"warm-{self.warmup}" if self.warmup else "test") + task


def train_config(cell: Cell, folder: Path, *, lr: float | None = None, model: Path | None = None) -> TrainConfig:
    """The cell's run in `folder`; `lr` where a sweep chose it."""
    common = {
        "model.path": str(model or ROOT / "models" / "countdown"),
        "task.num_validation": NUM_FOLLOWED,
        "task.num_test": NUM_TEST,
        "task.num_workers": 1,
        "evaluation.every": FOLLOW_EVERY if cell.is_followed else 0,
        "evaluation.num_samples": FOLLOW_SAMPLES,
        "evaluation.at_end": False,
        "evaluation.seed": 1000 + cell.seed,
        "run.folder": str(folder),
        "run.seed": cell.seed,
        "run.num_steps": cell.num_steps,
        "run.keep_last": 1,
        "run.scored_rollouts": 32,
        "run.sinks": (),
    }
    chosen = {} if lr is None else {"optimizer.lr": lr}
    base = load_config(TrainConfig, ROOT / "configs" / "countdown.toml")
    return with_settings(base, common | chosen | cell.settings)


def selection_cells(sweep: str) -> list[Cell]:
    """One run per learning rate of a sweep: the name of an objective, or `objective.u1` for one update per batch."""
    has_one_update = sweep.endswith(".u1")
    settings = dict(OBJECTIVES[sweep.removesuffix(".u1")])
    settings |= {"task.seed": SELECTION_DATA_SEED, "evaluation.num_samples": 16}
    settings |= {"algorithm.updates_per_batch": 1} if has_one_update else {}
    rates = LEARNING_RATES[1:] if has_one_update else LEARNING_RATES[:3]
    return [
        Cell(f"select.{sweep}.lr{rate:g}", SELECTION_SEED, settings | {"optimizer.lr": rate}, test_samples=0)
        for rate in rates
    ]


def sweep_of(objective: str, updates: int = 4) -> str:
    """Families share a sweep: the weights of W-REINFORCE, and the objectives with a group baseline."""
    is_grouped = objective in ("grpo", "dr-grpo", "rloo")
    shared = "grpo" if is_grouped else "w-reinforce-0.1" if objective.startswith("w-") else objective
    return shared if updates > 1 else f"{shared}.u1"


def tier0() -> Iterator[Cell]:
    """The sweeps that tier 1 needs."""
    for sweep in dict.fromkeys(map(sweep_of, OBJECTIVES)):
        yield from selection_cells(sweep)


def tier1() -> Iterator[Cell]:
    """Every objective on three seeds, with the ledger."""
    for seed, (name, settings) in product((1, 2, 3), OBJECTIVES.items()):
        yield Cell(f"tier1.{name}", seed, settings | LEDGER, sweep_of(name))


def tier2() -> Iterator[Cell]:
    """PSR and NSR by updates, clipping and reduction. With one update the ratio is 1: clipping cannot act."""
    for seed, name, reduction in product((1, 2), ("psr", "nsr"), REDUCTIONS):
        for updates, clip in ((1, "clip"), (4, "clip"), (4, "free")):
            settings = OBJECTIVES[name] | {
                "algorithm.updates_per_batch": updates,
                "algorithm.reduction": REDUCTIONS[reduction],
            }
            settings |= NO_CLIP if clip == "free" else {}
            cell_name = f"tier2.{name}.u{updates}.{clip}.{reduction}"
            yield Cell(cell_name, seed, settings, sweep_of(name, updates), test_samples=64)


def tier3() -> Iterator[Cell]:
    """Base strength, long runs, the entropy bonus, the rate that a sweep did not choose, and controls whose reward says
    nothing, the opposite, or little."""
    for steps, name in product((200, 600), ("psr", "nsr", "w-reinforce-0.1")):
        yield Cell(f"tier3.base{steps}.{name}", 1, OBJECTIVES[name] | LEDGER, sweep_of(name), warmup=steps)
    for name in ("psr", "nsr", "w-reinforce-0.1"):
        yield Cell(f"tier3.long.{name}", 1, OBJECTIVES[name], sweep_of(name), num_steps=LONG_STEPS)
    for seed, name in product((1, 2, 3), ("psr", "nsr", "w-reinforce-0.1")):
        yield Cell(f"tier3.entropy.{name}", seed, OBJECTIVES[name] | {"algorithm.entropy_coef": 1e-3}, sweep_of(name))
    for name, lr in (("psr", 1.5e-5), ("nsr", 1.5e-5), ("w-reinforce-0.1", 1.5e-5), ("grpo", 3e-5)):
        yield Cell(f"tier3.lr{lr:g}.{name}", 1, OBJECTIVES[name] | {"optimizer.lr": lr})
    for name in ("psr", "nsr"):
        yield Cell(f"tier3.random.{name}", 1, OBJECTIVES[name] | {"task.reward": "coin:0.25"}, sweep_of(name))
        yield Cell(f"tier3.inverted.{name}", 1, OBJECTIVES[name] | {"task.reward": "inverted"}, sweep_of(name))
        yield Cell(f"tier3.one-problem.{name}", 1, OBJECTIVES[name] | {"task.num_train": 1}, sweep_of(name))


def tier4() -> Iterator[Cell]:
    """What has been built on NSR and beside it (family.py): a base too weak for NSR alone, then the demo's."""
    short = {"test_samples": 64, "is_followed": False}
    for seed in SEEDS:
        for name, settings in ANCHORS.items():
            yield Cell(f"tier4.base{WEAK}.{name}", seed, settings, "nsr", warmup=WEAK, **short)
        for name, settings in BASELINES.items():
            yield Cell(f"tier4.{name}", seed, settings, "grpo", **short)
        for name, settings in WEIGHED.items():
            yield Cell(f"tier4.{name}", seed, settings, "nsr", test_samples=64)


def tier5() -> Iterator[Cell]:
    """Rewards that know more than right and wrong, or less: abstention, confidence, votes, nothing at all."""
    grpo, ternary = OBJECTIVES["grpo"], {"task.reward": "ternary"}
    arms = {
        "truthrl.binary": (grpo | {"task.reward": "binary"}, "grpo"),
        "truthrl.ternary": (grpo | ternary, "grpo"),
        "truthrl.nsr": (OBJECTIVES["nsr"], "nsr"),
        "truthrl.nsr-ternary": ({"algorithm.objective": "negative-reward"} | ternary, "nsr"),
        "rlcr.verifier": (OBJECTIVES["dr-grpo"], "grpo"),
        "rlcr.confidence": (OBJECTIVES["dr-grpo"] | {"task.reward": "confidence"}, "grpo"),
        "ttrl.verifier": (grpo, "grpo"),
        "ttrl.majority": (grpo | {"task.reward": "majority"}, "grpo"),
        "ttrl.base200.verifier": (grpo, "grpo"),
        "ttrl.base200.majority": (grpo | {"task.reward": "majority"}, "grpo"),
        "spurious.one-problem": (grpo | {"task.num_train": 1}, "grpo"),
        "spurious.coin": (grpo | {"task.reward": "coin"}, "grpo"),
        "spurious.coin-free": (grpo | NO_CLIP | {"task.reward": "coin"}, "grpo"),
        "spurious.format": (grpo | {"task.reward": "format"}, "grpo"),
        "spurious.inverted": (grpo | {"task.reward": "inverted"}, "grpo"),
        "spurious.majority-wrong": (grpo | {"task.reward": "majority-wrong"}, "grpo"),
    }
    for seed, (name, (settings, sweep)) in product((1, 2), arms.items()):
        common = REWARDED[name.partition(".")[0]]
        warmup = 200 if ".base200." in name else 0
        yield Cell(f"tier5.{name}", seed, common | settings, sweep, test_samples=64, is_followed=False, warmup=warmup)


def tier6() -> Iterator[Cell]:
    """By rank: what a step does to the tokens that it penalises or reinforces, from the demo's base and a weak one."""
    for seed, name, warmup in product((1, 2), ("nsr", "psr"), (0, 200)):
        cell_name = f"tier6.{f'base{warmup}.' if warmup else ''}{name}"
        settings = OBJECTIVES[name] | RANKS
        short = {"num_steps": 60, "test_samples": 16, "is_followed": False}
        yield Cell(cell_name, seed, settings, sweep_of(name), warmup=warmup, **short)


def tier8() -> Iterator[Cell]:
    """A critic as baseline (PPO), beside the group's mean and none, at one learning rate and over fewer steps."""
    methods = {"ppo": PPO, **{name: OBJECTIVES[name] for name in ("grpo", "rloo", "nsr")}}
    for seed, (name, settings) in product((1, 2), methods.items()):
        yield Cell(f"tier8.{name}", seed, settings | {"optimizer.lr": 3e-5}, num_steps=60, test_samples=64)


def tier9() -> Iterator[Cell]:
    """Told what was wrong, or what would have been right (told.py)."""
    for seed, (name, settings) in product((1, 2), (CRITIQUE | DIRECTION).items()):
        yield Cell(f"tier9.{name}", seed, TOLD | settings, num_steps=TOLD_STEPS, test_samples=64)


CELLS = {0: tier0, 1: tier1, 2: tier2, 3: tier3, 4: tier4, 5: tier5, 6: tier6, 8: tier8, 9: tier9}
TIERS = tuple(CELLS)


def cells_of(tier: int) -> list[Cell]:
    """The cells of a tier; ValueError for a tier that there is none of."""
    if tier not in TIERS:
        raise ValueError(f"tier {tier}: known tiers are {', '.join(map(str, TIERS))}")
    return list(CELLS[tier]())


def sweeps_needed(cells: list[Cell]) -> list[Cell]:
    """The selection runs that must be finished before these cells can start."""
    return [run for sweep in dict.fromkeys(c.selection for c in cells if c.selection) for run in selection_cells(sweep)]
