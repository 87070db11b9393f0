"""From the host to a device without waiting for it."""

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`. To a GPU it goes through pinned memory: the copy joins the GPU's queue and returns."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
