"""Writes what `fastrl plan` predicts into the head of every file in configs/recipes, and docs/recipes.md.

    python bench/recipes.py [NAME …]     # needs vLLM installed (it is not run), no GPU and no network; minutes

From the models' shapes alone (bench/recipe_models.py), not measured on a GPU. A recipe that does not fit a card is
planned again with each of SAVINGS.
"""

import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from recipe_models import MODELS

from fastrl.config.files import load_config
from fastrl.config.schema import TrainConfig
from fastrl.config.settings import with_settings
from fastrl.plan.plan import GIB, Plan, make_plan
from fastrl.plan.savings import EIGHT_BITS, NO_MASTERS
from fastrl.sampling.kv_budget import MOST_SEQUENCES, available_bytes

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "configs" / "recipes"
CARDS = {24: 23.6, 40: 39.4, 80: 79.2}  # GB in the name → GiB that CUDA shows: RTX 4090, A100, H100
EVERYTHING_GIB = 4096.0  # a card on which vLLM's cache is as large as it could use
RANKS = 8
SAVINGS = {
    "": {},
    'optimizer.kind = "adamw-bf16", optimizer.grad_dtype = "bfloat16"': NO_MASTERS,
    'optimizer.kind = "adamw-8bit", optimizer.grad_dtype = "bfloat16"': EIGHT_BITS,
    "model.lora_rank = 32": {"model.lora_rank": 32},
}
BEGIN = "# Predicted from shapes by bench/recipes.py, not measured: GiB with vLLM in the process, its cache included."
LINE = re.compile(r"# (?P<card>.+ GB): (?P<said>.*)")


@dataclass(frozen=True)
class Fit:
    """Whether a plan fits a card, and how many of the longest sequences its KV cache holds at once."""

    plan: Plan
    num_held: int

    @property
    def fits(self) -> bool:
        return self.plan.fits and self.num_held > 0

    def text(self) -> str:
        return f"{self.plan.peak / GIB:.1f} of {self.plan.memory / GIB:.1f}, {self.num_held} sequences at once"


def recipes() -> list[Path]:
    return sorted(FOLDER.glob("*.toml"))


def shaped(config: TrainConfig, folder: str) -> TrainConfig:
    """The config with its model's shapes written to the folder, in the place of the hub id."""
    MODELS[config.model.path].save_pretrained(folder)
    return with_settings(config, {"model.path": folder})


def plan_of(config: TrainConfig, memory_gib: float = EVERYTHING_GIB, num_ranks: int = 1) -> Plan:
    """What a recipe takes on cuda, its prompts at their longest."""
    prompt_tokens = config.task.max_prompt_tokens
    machine = {"device_type": "cuda", "memory_gib": memory_gib, "num_ranks": num_ranks}
    return make_plan(config, prompt_tokens=prompt_tokens, **machine)


def on_card(plan: Plan, memory_gib: float) -> Fit:
    """A plan of `plan_of` on a card of less memory: vLLM's cache gets what is left to it. One rank only."""
    memory = int(memory_gib * GIB)
    most = plan.work.config.sampler.batch_size or MOST_SEQUENCES
    one = plan.kv_cache // most
    kept = plan.sampler_weights + plan.static + plan.learners
    cache = min(plan.kv_cache, available_bytes(plan.work.device, memory, memory - kept))
    return Fit(replace(plan, memory=memory, kv_cache=cache), cache // one)


def predictions(config: TrainConfig) -> list[str]:
    """The lines of a recipe's head: one a card, and one for eight GPUs where one does not do."""
    with tempfile.TemporaryDirectory() as folder:
        config = shaped(config, folder)
        plans = dict.fromkeys(SAVINGS)
        lines = []
        for card, memory_gib in CARDS.items():
            lines.append(f"# {card} GB: {_said(config, plans, memory_gib)}")
        if "needs" in lines[-1]:
            several = plan_of(config, CARDS[80], RANKS)
            num_held = several.work.config.sampler.batch_size
            verdict = "fits" if several.fits else "does not fit"
            lines.append(f"# {RANKS} × 80 GB: {verdict}, {Fit(several, num_held).text()}, on each")
    return lines


def _said(config: TrainConfig, plans: dict[str, Plan | None], memory_gib: float) -> str:
    """`fits, …` or `needs SETTING: …` with the first saving that does. plans: what was planned before."""
    for name, settings in SAVINGS.items():
        plan = plans[name] = plans[name] or plan_of(with_settings(config, settings))
        fit = on_card(plan, memory_gib)
        if fit.fits:
            return f"needs {name}: {fit.text()}" if name else f"fits, {fit.text()}"
    return "none of bench/recipes.py's savings makes it fit"


def described(text: str) -> list[str]:
    """The lines that a person wrote at the head of a recipe."""
    head = text.partition("\n\n")[0].splitlines()
    return head[: head.index("#")]


def with_predictions(text: str, lines: list[str]) -> str:
    """A recipe's text with a new head."""
    body = text.partition("\n\n")[2]
    return "\n".join([*described(text), "#", BEGIN, *lines, "", body])


def shown(text: str) -> dict[str, str]:
    """Card → what a recipe's head says of it."""
    found = (LINE.fullmatch(line) for line in text.partition("\n\n")[0].splitlines())
    return {match["card"]: match["said"] for match in found if match}


def page() -> str:
    """docs/recipes.md, from the recipes as they are."""
    rows = [_row(path) for path in recipes()]
    head = "| recipe | objective | prompts × completions | tokens | 24 GB | 40 GB | 80 GB |\n" + "|---" * 7 + "|"
    return PAGE.format(table="\n".join([head, *rows]))


def _row(path: Path) -> str:
    config, text = load_config(TrainConfig, path), path.read_text()
    cells = [_cell(shown(text).get(f"{card} GB", "")) for card in CARDS]
    sizes = f"{config.batch.prompts_per_step} × {config.batch.rollouts_per_prompt}"
    tokens = f"{config.task.max_prompt_tokens} + {config.sampler.max_new_tokens}"
    link = f"[{path.stem}](../configs/recipes/{path.name})"
    return f"| {' | '.join([link, config.algorithm.objective, sizes, tokens, *cells])} |"


def _cell(said: str) -> str:
    peak = re.search(r"([0-9.]+) of", said)
    if not peak:
        return "no"
    short = re.search(r'"(adamw-\w+)"|(lora_rank = \d+)', said)
    return f"{peak[1]}" + (f" with `{short[1] or short[2]}`" if short and said.startswith("needs") else "")


PAGE = """# Recipes

Configs for pretrained models, in `configs/recipes/`. One is run like any other, and any setting can follow:

    pip install '.[vllm,tasks]'
    fastrl train configs/recipes/qwen3-0.6b-gsm8k-nsr.toml --run.folder runs/mine

GiB that `fastrl plan` predicts on one GPU, vLLM and its KV cache included, and the setting that a card needs where the
recipe as it is does not fit. **Predicted from the models' shapes, not measured**: none of these runs was made. `no`:
none of adamw-bf16, adamw-8bit and adapters of rank 32 makes it fit. The head of each file says how many sequences the
cache holds at once, and what eight GPUs would take. `python bench/recipes.py` writes this page and these heads; a test
plans them again.

{table}

Learning rates, batch sizes and lengths are common choices and the paper's (`…-paper`: arXiv:2506.01347), not tuned
here. For your own data set `task.train`, `task.validation` and `task.test` to JSON lines or other datasets. Countdown's
prompts are in words here (`task.name = "countdown-words"`), with division; rows have `nums` and `target`.

Adapters want a larger learning rate than a whole model, about 1e-5: `--model.lora-rank 32 --optimizer.lr 1e-5`.
"""


def main() -> None:
    for path in recipes():
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            lines = predictions(load_config(TrainConfig, path))
            path.write_text(with_predictions(path.read_text(), lines))
            print(path.name, *lines, sep="\n", flush=True)
    (ROOT / "docs" / "recipes.md").write_text(page())


if __name__ == "__main__":
    main()
