"""How long `fastrl watch` takes to index rollouts and to answer filters: python bench/bench_watch.py [--num 100000]"""

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from many_rollouts import write_many

from fastrl.watch.rollout_index import Filter, RolloutIndex

ASKED = {
    "nothing": Filter(),
    "reward": Filter(min_reward=1),
    "steps": Filter(min_step=100, max_step=120),
    "problem": Filter(problem="p-77"),
    "text, found once": Filter(text="needle-50000"),
    "text, not found": Filter(text="not there"),
    "text and reward, longest first": Filter(text="ab", min_reward=1, order="longest"),
    "least credit first": Filter(order="least credit"),
}


@dataclass(frozen=True)
class Size:
    num: int = 100_000
    """Rollouts."""
    num_tokens: int = 60
    """Of each; five characters a token."""


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(size: Size) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "rollouts"
        write_many(folder, size.num, size.num_tokens)
        before, start = peak_mib(), time.perf_counter()
        index = RolloutIndex(folder)
        index.refresh()
        print(f"{size.num} rollouts × {size.num_tokens} tokens: indexed in {time.perf_counter() - start:.1f} s")
        for label, asked in ASKED.items():
            start = time.perf_counter()
            total = index.page(asked, 0, 100)["total"]
            print(f"{label}: {total} in {time.perf_counter() - start:.3f} s")
        print(f"memory: {peak_mib() - before:.0f} MiB more than before")
        index.close()


if __name__ == "__main__":
    main(tyro.cli(Size))
