"""One of three processes of tests/test_ranks.py: torchrun --nproc-per-node 3 tests/agree_ranks.py KeyError|…|none"""

import builtins
import sys

import torch

from fastrl.process.ranks import Ranks, joined


def fail(ranks: Ranks, name: str, numbers: tuple[int, ...], message: str) -> int:
    if name != "none" and ranks.rank in numbers:
        raise getattr(builtins, name)(message)
    return 10 * ranks.rank


def tell(line: str) -> None:
    """In one write: three processes share the pipe."""
    print(f"{line}\n", end="", flush=True)


def main(name: str) -> None:
    try:
        with joined(torch.device("cpu")) as ranks:
            thread_ranks = ranks.apart()
            try:
                ranks.agree(lambda: fail(ranks, name, (1,), "broken"))
            except Exception as error:
                tell(f"rank {ranks.rank} caught {type(error).__name__} {error}")
            mine = thread_ranks.agree(lambda: fail(ranks, name, (1, 2), "broken again"))
            text = ranks.on_main(lambda: "x")
            tell(f"agreed on {ranks.gather(mine)}, main's {text!r}")
    except Exception as error:
        tell(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
