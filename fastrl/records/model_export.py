"""A model as a Hugging Face folder, copied to CPU memory first and written later, while training goes on."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fastrl.policy.lora import adapters
from fastrl.process.ranks import ALONE, Ranks


class ModelExport:
    """`stage()` copies the weights; `write(folder)` saves the copy, with config and tokenizer, on the main rank.

    Sharded parameters are gathered one by one: a device holds only one whole parameter at a time. dtype: what
    parameters are cast to (what transformers and vLLM will load); None keeps each as it is. Of a model with adapters
    only the adapters are copied and saved, in peft's format.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        dtype: torch.dtype | None = None,
        ranks: Ranks = ALONE,
    ):
        self.model, self.dtype, self.ranks = model, dtype, ranks
        self.tokenizer = copy.deepcopy(tokenizer)  # a fast tokenizer cannot be saved and used by two threads at once
        self.weights: dict[str, Tensor] = {}
        self.generation_config: GenerationConfig | None = None

    def stage(self) -> None:
        """Copy all weights to the main rank's CPU memory. Collective where parameters are sharded."""
        self.weights = dict(self._copies())
        self.generation_config = copy.deepcopy(self.model.generation_config)

    @torch.no_grad()
    def _copies(self) -> Iterator[tuple[str, Tensor]]:
        """Names and CPU copies on the main rank, nothing elsewhere; tied parameters share one copy."""
        copies: dict[int, Tensor] = {}
        has_adapters = bool(adapters(self.model))
        for name, value in self.model.state_dict(keep_vars=True).items():
            if has_adapters and not value.requires_grad:
                continue
            if id(value) not in copies:
                whole = self._whole(value)
                copies[id(value)] = whole.to("cpu", copy=True) if self.ranks.is_main else torch.empty(0)
            if self.ranks.is_main:
                yield name, copies[id(value)]

    def _whole(self, value: Tensor) -> Tensor:
        tensor = value.detach()
        if self.dtype and isinstance(value, torch.nn.Parameter) and value.is_floating_point():
            tensor = tensor.to(self.dtype)
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def write(self, folder: Path) -> None:
        """Save what was staged and drop the copy. On the main rank, in any thread."""
        self.model.save_pretrained(folder, state_dict=self.weights)
        self.weights = {}
        if self.generation_config:  # the model may have a sampler's at this moment
            self.generation_config.save_pretrained(folder)
        if self.dtype and not adapters(self.model):
            _set_dtype(folder / "config.json", self.dtype)
        if self.tokenizer:
            self.tokenizer.save_pretrained(folder)


def _set_dtype(path: Path, dtype: torch.dtype) -> None:
    """Write the dtype of the files into config.json, nested configs too: it names that of the module in memory."""
    config = json.loads(path.read_text())
    for part in (config, *config.values()):
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2) + "\n")
