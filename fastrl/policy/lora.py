"""LoRA through peft: W·x + (α/r)·B·A·x with W frozen, A and B trained (Hu et al. 2021, arXiv:2106.09685).

Adapters are injected into the Hugging Face model in place: it stays the PreTrainedModel that it was, so packing,
recomputation, the head, generation and saving (peft's format, loadable by PeftModel.from_pretrained) go on as before.
They have the model's dtype, with the optimizer's float32 masters like any other trained weight. Nothing is ever merged.
Left out: dropout, adapters on the head or on embeddings, trained biases.
"""

import copy
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fastrl.config.schema import ModelConfig

NAME = "default"  # what peft and transformers call the only adapter
INSTALL = "pip install '.[lora]' in fastrl's clone"


@dataclass(frozen=True)
class Adapter:
    """What is added to one layer: scale·B·A·x with A (r, in) and B (out, r)."""

    A: nn.Parameter
    B: nn.Parameter
    scale: float

    def scaled_B(self) -> Tensor:
        """scale·B in B's dtype, without gradient: rounded unless the scale is a power of two."""
        return self.B.detach() * self.scale


def is_adapter_folder(path: str) -> bool:
    """Whether `path` holds adapters in peft's format and no whole model."""
    folder = Path(path).expanduser()
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def base_path(path: str) -> str:
    """`path` itself, or for a folder of adapters the base model that it names. ValueError if that is not there."""
    if not is_adapter_folder(path):
        return path
    base = json.loads((Path(path).expanduser() / "adapter_config.json").read_text())["base_model_name_or_path"]
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ValueError(
            f"model.path = '{path}' holds adapters of the model '{base}', which is not there: bring it back, or set "
            "base_model_name_or_path in adapter_config.json to where it is"
        )
    return base


def check_lora(config: ModelConfig) -> None:
    """ValueError for a folder of adapters, and for LoRA without peft. `check_targets` also needs the architecture."""
    if is_adapter_folder(config.path):
        raise ValueError(
            f"model.path = '{config.path}' holds adapters, no whole model: `fastrl eval` takes it, training does not. "
            "Merge it first: peft.AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…)"
        )
    if config.lora_rank:
        _require_peft(f"model.lora_rank = {config.lora_rank}")


def _require_peft(what: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"{what}, but peft is not installed: {INSTALL}")


def check_targets(config: ModelConfig, architecture: PreTrainedConfig) -> None:
    """ValueError for a name in model.lora_targets that is no linear layer, or the head. Builds the model on meta."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(architecture), trust_remote_code=config.trust_remote_code
        )
    head = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    known = sorted({name.rpartition(".")[2] for name, module in linear.items() if module is not head})
    for target in config.lora_targets:
        matched = [module for name, module in linear.items() if name == target or name.endswith(f".{target}")]
        if head in matched:
            raise ValueError(f"model.lora_targets: '{target}' is the head, which takes no adapter; it may be {known}")
        if not matched:
            raise ValueError(
                f"model.lora_targets: '{target}' is no linear layer of {type(model).__name__}; it may be {known}"
            )


def attach(model: PreTrainedModel, config: ModelConfig, checkpoint: Path | None, *, seed: int) -> str:
    """Freeze the model and inject adapters: a checkpoint's, or new ones (A random by `seed`, B zero).

    Returns one line for people.
    """
    from peft import LoraConfig

    if checkpoint:
        model.load_adapter(str(checkpoint), is_trainable=True)
    else:
        settings = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules=list(config.lora_targets) or "all-linear",
            lora_dropout=0.0,
            bias="none",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            model.add_adapter(settings)
    model.eval()
    base = Path(model.name_or_path)
    model.peft_config[NAME].base_model_name_or_path = str(base.resolve()) if base.is_dir() else model.name_or_path
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = num_trained / sum(p.numel() for p in model.parameters())
    return f"LoRA: {len(adapters(model))} matrices, rank {config.lora_rank}, {num_trained} trained values ({share:.2%})"


def load_adapters(model: PreTrainedModel, folder: str) -> None:
    """Inject a folder's adapters, frozen. ValueError without peft, and for a folder with more than A and B."""
    _require_peft(f"model.path = '{folder}' holds adapters")
    known = dict(model.named_parameters()).keys()
    model.load_adapter(str(Path(folder).expanduser()))
    if odd := sorted(base_parameters(model).keys() - known):
        raise ValueError(f"model.path = '{folder}' holds more than LoRA's A and B on linear layers, such as {odd[0]}")


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapters by the name of their layer in the base model; empty for a model without any."""
    if not getattr(model, "peft_config", None):
        return {}
    from peft.tuners.lora import LoraLayer

    return {
        name: Adapter(layer.lora_A[NAME].weight, layer.lora_B[NAME].weight, layer.scaling[NAME])
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and NAME in layer.lora_A
    }


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are no adapter's, under their names in the base model."""
    added = {id(t) for adapter in adapters(model).values() for t in (adapter.A, adapter.B)}
    return {
        ".".join(part for part in name.split(".") if part != "base_layer"): parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in added
    }


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes as its base does. A model without adapters stays as it is."""
    layers = [model.get_submodule(name) for name in adapters(model)]
    _switch(layers, on=False)
    try:
        yield
    finally:
        _switch(layers, on=True)


def _switch(layers: list[nn.Module], *, on: bool) -> None:
    """Switch adapters on or off. peft would also freeze those that it switches off: `requires_grad` is kept here."""
    for layer in layers:
        is_trained = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
        layer.enable_adapters(on)
        for parameter, needed in is_trained:
            parameter.requires_grad_(needed)
