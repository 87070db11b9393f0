"""How much memory a device has, and how much of it is in use."""

import os

import torch


def device_memory(device: torch.device) -> tuple[int, int]:
    """(free, total) bytes of a GPU; on CPU all of the machine's memory twice."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total


def memory_metrics(device: torch.device) -> dict[str, float]:
    """GiB of this process: what it holds in RAM (Linux), and the most that its tensors took on a GPU so far."""
    found = {}
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            found["memory/resident_gib"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    if device.type == "cuda":
        found["memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found
