"""Where the Hugging Face parameters lie in the module that vLLM serves: rows of its fused and padded tensors."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """A parameter of vLLM's module and which rows of it hold which Hugging Face parameter.

    rows maps a Hugging Face name to (first row, one past the last row); rows in no entry are padding.
    """

    name: str
    parameter: nn.Parameter
    rows: dict[str, tuple[int, int]]


def served_slots(model: nn.Module) -> list[Slot]:
    """Each parameter once, with the rows that vLLM's own fused layers and padded vocabularies define."""
    packed = getattr(model, "packed_modules_mapping", None) or {}
    modules = dict(model.named_modules())
    slots = []
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        own = path.removesuffix(".base_layer")  # what vLLM calls the layer inside one that takes adapters
        slots.append(Slot(name, parameter, _rows(modules[path], own, leaf, len(parameter), packed)))
    return slots


def adapter_slots(model: nn.Module, adapter_id: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each layer's adapter; {} unless it is the active one. Fused layers have one pair of buffers a part."""
    manager = model.lora_manager
    if manager.lora_index_to_id != [adapter_id]:
        return {}
    slots = {}
    for path, layer in manager.modules.items():
        parts = manager.packed_modules.get(path, [path])
        for part, A, B in zip(parts, layer.lora_a_stacked, layer.lora_b_stacked, strict=True):
            slots[part] = (A[0, 0], B[0, 0])
    return slots


def _rows(module: nn.Module, path: str, leaf: str, num_rows: int, packed: dict) -> dict[str, tuple[int, int]]:
    parent, _, own = path.rpartition(".")
    parts, sizes = packed.get(own, [own]), getattr(module, "output_sizes", None)
    if len(parts) == 1:
        return {f"{path}.{leaf}": (0, getattr(module, "org_vocab_size", num_rows))}
    if sizes is None or len(sizes) != len(parts) or sum(sizes) != num_rows:
        return {}  # fused in a way that row ranges do not describe: nothing maps onto it
    ends = np.cumsum(sizes).tolist()
    names = [".".join(filter(None, (parent, part, leaf))) for part in parts]
    return {name: (end - size, end) for name, size, end in zip(names, sizes, ends, strict=True)}
