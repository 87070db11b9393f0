"""Which back-end runs, and what the kernels import."""

import ast
from pathlib import Path

import pytest
import torch

from fastrl import kernels
from fastrl.kernels import choose, forced_backend, native

FOLDER = Path(kernels.__file__).parent


@pytest.mark.parametrize("operation", ["token_logprobs", "policy_loss", "linear_policy_loss"])
def test_the_choice_says_why(operation) -> None:
    assert choose(operation, "cpu", torch.bfloat16).backend == "native"
    assert operation in choose(operation, "cpu", torch.float32).reason
    wide = choose(operation, "cpu", torch.float64)
    assert (wide.backend, "torch.float64" in wide.reason) == ("reference", True)
    assert choose(operation, "cuda", torch.bfloat16).backend in ("triton", "reference")
    assert choose(operation, "mps", torch.float32).reason.endswith("on mps")


def test_a_forced_backend_ends_with_its_block() -> None:
    with forced_backend("reference"):
        assert choose("policy_loss", "cpu", torch.float32).backend == "reference"
        with forced_backend("native"):
            assert choose("policy_loss", "cpu", torch.float32).backend == "native"
        assert choose("policy_loss", "cpu", torch.float32).backend == "reference"
    assert choose("policy_loss", "cpu", torch.float32).reason != "forced by the caller"
    with pytest.raises(ValueError, match="got 'cuda'"), forced_backend("cuda"):
        pass


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports() -> None:
    """`fastrl._native` in one file and nothing else of fastrl; Triton in its files; the reference needs only torch."""
    for path in FOLDER.glob("*.py"):
        names = imports_of(path)
        of_fastrl = {name for name in names if name.split(".")[0] == "fastrl"}
        assert of_fastrl == ({"fastrl._native"} if path.stem == "native" else set()), path
        if not path.stem.startswith("triton_"):
            assert not {name for name in names if name.split(".")[0] == "triton"}, path
    assert {name.split(".")[0] for name in imports_of(FOLDER / "reference.py")} == {"torch"}
    assert native.path() in ("avx512", "avx2", "portable")
