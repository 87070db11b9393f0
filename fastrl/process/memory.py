"""How much memory a device has."""

import os

import torch


def device_memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of a GPU; on CPU all of the machine's memory twice."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total
