"""Extra memory of one linear loss and its gradients on CPU, in bytes: peak resident set minus what was there before and
minus dX and dW. Linux only.

    python bench/peak_memory.py ours 1024
"""

import ctypes
import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the highest since the last reset)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field + ":"))


def given_back() -> int:
    """Freed memory goes back to the system and VmHWM starts again from what is resident now, which is returned."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    return before


def main(who: str, num_rows: int) -> None:
    import bench_linear_policy_loss as linear

    run = {"ours": linear.ours, "eager": linear.eager}[who]
    run(*linear.make(16, 512, 64))  # libraries and thread pools are loaded, code is compiled
    inputs = linear.make(num_rows)
    before = given_back()
    gradients = run(*inputs)
    print(resident_bytes("VmHWM") - before - sum(x.numel() * x.element_size() for x in gradients))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
