"""Publishing an update to vLLM, alias against copy: bytes, time, resident memory. A random Qwen3 of 159 M parameters.

    python bench/bench_publish.py              both modes, each in a fresh process; writes bench/results/publish.json
    python bench/bench_publish.py --mode alias one mode, one JSON line

Resident memory is read after the model and the engine are built and after updates were published and sampled from:
AdamW is left out (it is the same in both), the update is an in-place change of every weight. Linux only.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from machine import machine
from transformers import AutoModelForCausalLM, Qwen3Config

from fastrl.sampling.protocol import SamplingSettings, sample
from fastrl.sampling.vllm_engine import Engine, EngineSettings
from fastrl.sampling.vllm_sampler import VllmSampler
from fastrl.sampling.weights.choose import share_weights

CONFIG = Qwen3Config(
    vocab_size=32000,
    hidden_size=768,
    intermediate_size=2560,
    num_hidden_layers=18,
    num_attention_heads=12,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)
NUM_UPDATES = 12


def measure(mode: str, folder: str) -> dict:
    """Numbers of one mode, in this process alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = Engine(EngineSettings(folder, torch.float32, 256, 8, 64 << 20))
    sampler = VllmSampler(engine, share_weights(mode, engine, model, lambda text: None), stop_token_ids=[])
    settings = SamplingSettings(num_samples=4, max_new_tokens=8)
    publish_ms, prove_ms, num_bytes = [], [], 0
    for version in range(1, NUM_UPDATES + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 - 1e-4)
        start = time.perf_counter()
        num_bytes = sampler.publish(version)
        middle = time.perf_counter()
        sampler.prove_fresh(version)
        publish_ms.append(1e3 * (middle - start))
        prove_ms.append(1e3 * (time.perf_counter() - middle))
    sample(sampler, [[5, 6, 7], [8, 9]], settings, [1, 2])
    weight_bytes = sum(p.nbytes for p in model.parameters())
    result = {
        "mode": mode,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": weight_bytes,
        "rss_bytes": resident_bytes(),
        "publish_bytes": num_bytes,
        "publish_ms": spread(publish_ms),
        "prove_fresh_ms": spread(prove_ms),
    }
    sampler.close()
    return result


def resident_bytes() -> int:
    """Resident set of this process, after the allocator gave back what it could."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    fields = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in fields if line.startswith("VmRSS:"))


def spread(values: list[float]) -> dict[str, float]:
    """Median, p20 and p80."""
    p20, *_, p80 = statistics.quantiles(values, n=5)
    return {"median": round(statistics.median(values), 4), "p20": round(p20, 4), "p80": round(p80, 4)}


def both(folder: str) -> dict:
    """Each mode in a fresh process: resident memory of one cannot hide in what the other freed."""
    rows = []
    for mode in ("alias", "copy"):
        command = [sys.executable, __file__, "--mode", mode, "--folder", folder]
        rows.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[-2])
        )
        print(rows[-1])
    saved = rows[1]["rss_bytes"] - rows[0]["rss_bytes"]
    summary = {"rss_saved_bytes": saved, "rss_saved_weight_sets": round(saved / rows[0]["weight_bytes"], 3)}
    return {"machine": machine(), "command": "python bench/bench_publish.py", "rows": rows} | summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("alias", "copy"))
    parser.add_argument("--folder")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(measure(arguments.mode, arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(CONFIG).float().save_pretrained(folder)
        result = both(folder)
    arguments.results.mkdir(exist_ok=True)
    (arguments.results / "publish.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"copy holds {result['rss_saved_weight_sets']} weight sets more than alias")


if __name__ == "__main__":
    main()
