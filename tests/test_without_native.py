"""Everything but the C++ kernels works where `fastrl._native` is not built, as on a GPU machine without a compiler."""

import os
import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from fastrl.kernels import Head, TokenLoss, TokenRows, linear_policy_loss, policy_loss, token_logprobs

ROOT = Path(__file__).resolve().parent.parent
CASE = """
import torch
generator = torch.Generator().manual_seed(0)
hidden, weight = (torch.randn(n, 8, generator=generator).requires_grad_() for n in (6, 40))
targets = torch.randint(40, (6,), generator=generator)
advantages = torch.tensor([1.0, -1.0, 0.0, 0.5, -2.0, 0.0])
"""
CODE = """
import pickle, sys
from fastrl.kernels import Head, TokenLoss, TokenRows, dispatch, linear_policy_loss, policy_loss, token_logprobs
from fastrl.cli import main
assert main(["doctor"]) == 0
path, memory = sys.argv[1:3]
plan = ["plan", "--model.path", path, "--sampler.max-new-tokens", "16", "--memory-gib", memory, "--device", "cuda"]
assert main([*plan, "--prompt-tokens", "11"]) == 0
try:
    dispatch.row_kernel("native")
except ImportError as error:
    print("refused:", error)
rows = TokenRows(targets, advantages, 0.2)
score = token_logprobs(hidden.detach(), Head(weight.detach()), rows)
linear = linear_policy_loss(hidden, Head(weight), rows, TokenLoss())
linear.loss.backward()
logits = (hidden @ weight.t()).detach().requires_grad_()
policy_loss(logits, rows, TokenLoss()).loss.backward()
pickle.dump([*score, linear.loss.detach(), hidden.grad, weight.grad, logits.grad], open(sys.argv[3], "wb"))
"""


@pytest.fixture
def site(tmp_path) -> Path:
    """The package's Python files, and no library."""
    package = tmp_path / "site" / "fastrl"
    package.mkdir(parents=True)
    for path in (ROOT / "fastrl").iterdir():
        if path.name != "__pycache__" and not path.name.startswith("_native"):
            (package / path.name).symlink_to(path)
    (package / "kernels").symlink_to(ROOT / "kernels")
    return package.parent


def run(site: Path, code: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_kernels_doctor_and_plan(site, countdown_folder, tmp_path):
    """On CPU the reference computes what the C++ kernels compute, and the reason is said."""
    out = run(site, CASE + CODE, str(countdown_folder), "2", str(tmp_path / "found.pkl"))
    for operation in ("token_logprobs", "policy_loss", "linear_policy_loss"):
        assert f"kernel {operation}: reference (fastrl._native is not built)" in out
    assert "kernel: triton" in out and "refused: fastrl._native is not built" in out
    case: dict = {}
    exec(CASE, case)
    hidden, weight, rows = case["hidden"], case["weight"], TokenRows(case["targets"], case["advantages"], 0.2)
    linear = linear_policy_loss(hidden, Head(weight), rows, TokenLoss())
    logits = (hidden @ weight.t()).detach().requires_grad_()
    policy_loss(logits, rows, TokenLoss()).loss.backward()
    expected = [
        *token_logprobs(hidden.detach(), Head(weight.detach()), rows),
        linear.loss.detach(),
        *torch.autograd.grad(linear.loss, [hidden, weight]),
        logits.grad,
    ]
    found = pickle.loads((tmp_path / "found.pkl").read_bytes())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_library_that_cannot_be_loaded_is_named(site):
    """Built for another Python's ABI, cut off, or against a missing OpenMP."""
    (site / "fastrl" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"\x7fELF cut off")
    out = run(
        site, "from fastrl.kernels import choose; import torch; print(choose('policy_loss', 'cpu', torch.float32))"
    )
    assert "reference (fastrl._native cannot be loaded: " in out
