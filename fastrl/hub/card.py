"""The model card of a checkpoint: metadata for the hub, the evaluation with its bands, the settings of the run."""

import importlib.metadata
import os
from pathlib import Path
from typing import Any

import tomli_w
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from fastrl.config.schema import TrainConfig
from fastrl.config.settings import settings_of
from fastrl.hub.published import Published
from fastrl.ledger.tables import ledger_text
from fastrl.records.jsonl import read_jsonl
from fastrl.records.tables import measure_table, pass_table

TAGS = ["fastrl", "reinforcement-learning", "rlvr"]
PACKAGES = ("fastrl", "torch", "transformers")
SERVED = ("openenv:http://", "openenv:https://")  # begins the name of a task whose server lies somewhere
PRIVATE = {"run.folder", "task.reward_folder"}  # where things lie on one machine
_LOAD = {
    "transformers": """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
""",
    "peft": """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoPeftModelForCausalLM.from_pretrained("{name}")
""",
}


def model_card(published: Published, name: str, license: str = "") -> ModelCard:
    """The card. name: of the repository, `owner/name`. license: as the hub spells it; empty: the base model's, if its
    folder has a card that says it, else none is claimed."""
    library = "peft" if published.is_adapter else "transformers"
    base = published.config.model.path
    data = ModelCardData(
        base_model=base if is_hub_id(base, published.run) else None,
        library_name=library,
        pipeline_tag="text-generation",
        license=license or _license_of(Path(base)) or None,
        tags=[*TAGS, published.config.algorithm.objective],
        datasets=_datasets(published) or None,
        model_name=name.rpartition("/")[2],
        eval_results=_eval_results(published) or None,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(published, name, library)}")


def _text(published: Published, name: str, library: str) -> str:
    config = published.config
    parts = [
        f"# {name.rpartition('/')[2]}",
        f"{without_places(config.model.path)} after {published.step} steps of reinforcement learning from verifiable "
        f"rewards with fastrl {importlib.metadata.version('fastrl')}: task `{without_places(config.task.name)}`, "
        f"objective `{config.algorithm.objective}`, surrogate `{config.algorithm.surrogate}`.",
        "## Evaluation",
        _evaluation_text(published),
        "## Use",
        f"```python\n{_LOAD[library].format(name=name)}```\n\nThe prompt is the task's, in template "
        f"`{config.task.template}`.",
        "## Training",
        f"`fastrl train` with these settings, all others at their defaults:\n\n```toml\n{_settings(config)}```",
        ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES) + " wrote this card.",
    ]
    if _has_ledger(published):
        parts += ["## Where probability went", ledger_text(published.run).rstrip("\n")]
    return "\n\n".join(parts) + "\n"


def _has_ledger(published: Published) -> bool:
    """Whether the run has a ledger, none of whose lines is about later weights than these."""
    path = published.run / "ledger.jsonl"
    rows = read_jsonl(path) if path.is_file() and path.stat().st_size else []
    return bool(rows) and rows[-1]["step"] <= published.step


def _evaluation_text(published: Published) -> str:
    if not published.evaluations:
        return "These weights were not evaluated: no evaluation in the run's folder is of this step."
    said = []
    for name, one in published.evaluations.items():
        settings = one["settings"]
        said.append(
            f"{name}: {one['num_problems']} problems, {one['num_samples']} samples each, temperature "
            f"{settings['temperature']:g}, top-p {settings['top_p']:g}; {100 * one['truncated_share']:.1f} % were cut "
            f"at the token limit. ± is half of the 95 % bootstrap band over problems.\n\n"
            f"{pass_table({name: one})}{measure_table(one.get('measures', {}))}"
        )
    return "\n".join(said).rstrip("\n")


def _eval_results(published: Published) -> list[EvalResult]:
    """pass@k as fractions, with the ends of its band in the metric's arguments."""
    task = without_places(published.config.task.name)
    dataset = next(iter(_datasets(published)), task)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=f"{task}, {name}",
            dataset_config=name,  # results of one dataset, configuration and split are taken for one evaluation
            dataset_split=one.get("split"),
            metric_type=f"pass@{k}",
            metric_name=f"pass@{k}",
            metric_value=round(band["mean"], 6),
            metric_args={
                "low": round(band["low"], 6),
                "high": round(band["high"], 6),
                "num_problems": one["num_problems"],
                "num_samples": one["num_samples"],
            },
        )
        for name, one in published.evaluations.items()
        for k, band in one["pass_at_k"].items()
    ]


def _settings(config: TrainConfig) -> str:
    """What differs from the defaults, as TOML; of local paths the last part."""
    sections: dict[str, Any] = {}
    for (name, _, value), (_, _, default) in zip(settings_of(config), settings_of(TrainConfig()), strict=True):
        if value == default or name in PRIVATE:
            continue
        *path, key = name.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[key] = without_places(value) if isinstance(value, str) else value
    return tomli_w.dumps(sections)


def without_places(value: str) -> str:
    """A path without the folders of this machine, a task without the address of its server."""
    if value.startswith(SERVED):
        return f"{SERVED[0]}…"
    return os.path.basename(os.path.normpath(value)) if os.path.isabs(value) else value


def _datasets(published: Published) -> list[str]:
    """The hub datasets among the task's sources."""
    task = published.config.task
    sources = {task.train, task.validation, task.test} - {""}
    ids = {source.partition(":")[0] for source in sources}
    files = (".jsonl", ".json", ".ndjson", ".parquet")
    return sorted(i for i in ids if i.count("/") == 1 and is_hub_id(i, published.run) and not i.endswith(files))


def is_hub_id(name: str, run: Path) -> bool:
    """Whether it can be on the hub and is no path, from here or from a folder above the run, where that was started."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not any((place / name).exists() for place in (Path(), *run.absolute().parents))


def _license_of(base: Path) -> str:
    card = base / "README.md"
    return ModelCard.load(card, ignore_metadata_errors=True).data.license or "" if card.is_file() else ""
