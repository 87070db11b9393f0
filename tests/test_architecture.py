"""The house rules: imports point down only, heavy packages have one home, and our kernels/ shadows nobody's package."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastrl

ROOT = Path(__file__).resolve().parent.parent

# Who may import whom inside fastrl, lowest first. A module may import from its own layer's package and from below.
LAYERS = [
    {
        "fastrl.config",
        "fastrl.rollouts",
        "fastrl.seeds",
        "fastrl.statistics",
        "fastrl.calibration",
        "fastrl.interrupts",
        "fastrl.divergence",
        "fastrl.watchdog",
        "fastrl.ranks",
        "fastrl.kernels",
    },
    {
        "fastrl.config_files",
        "fastrl.config_checks",
        "fastrl.tasks",
        "fastrl.objectives",
        "fastrl.reductions",
        "fastrl.step_metrics",
        "fastrl.importance",
    },
    {"fastrl.policy", "fastrl.prompts", "fastrl.lengths"},
    {"fastrl.sampling", "fastrl.records"},
    {
        "fastrl.update",
        "fastrl.evaluation",
        "fastrl.warmup",
        "fastrl.doctor",
        "fastrl.plan",
        "fastrl.savings",
        "fastrl.ledger",
    },
    {"fastrl.trainer", "fastrl.evaluation_run", "fastrl.compare", "fastrl.preflight"},
    {"fastrl.resumption"},
    {"fastrl.training"},
    {"fastrl.cli"},
]
ALLOWED_HOMES = {
    "vllm": ("fastrl/sampling/engine.py", "fastrl/sampling/side_effects.py"),
    "peft": ("fastrl/policy/lora.py",),
    "triton": ("kernels/triton",),
    "flash_attn": ("fastrl/policy/attention.py",),
    "flash_attn_interface": ("fastrl/policy/attention.py",),
    "torchao": ("fastrl/policy/rounding.py",),
    "mpmath": ("fastrl/tasks/values.py", "fastrl/tasks/math.py"),
    "matplotlib": ("fastrl/records/plot.py",),
}


def sources() -> list[Path]:
    return [p for folder in ("fastrl", "kernels") for p in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Absolute names of imported modules, relative imports resolved."""
    package = list(path.relative_to(ROOT).with_suffix("").parts)
    if package[0] == "kernels":
        package.insert(0, "fastrl")
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level], node.module or ""]) if node.level else node.module
            names |= {f"{base.rstrip('.')}.{alias.name}" for alias in node.names}
    return names


def layer_of(name: str) -> int | None:
    parts = ".".join(name.split(".")[:2])
    return next((i for i, layer in enumerate(LAYERS) if parts in layer), None)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if own.startswith("kernels"):
        inner = {n for n in imports(path) if n.startswith("fastrl") and not n.startswith("fastrl.kernels")}
        allowed = {"fastrl._native"} if path.name == "native.py" else set()
        assert inner <= allowed, f"kernels may import fastrl._native in native.py only, not {inner}"
        return
    if own == "fastrl.__init__":
        assert not {n for n in imports(path) if n.startswith("fastrl")}, "fastrl/__init__.py exports lazily"
        return
    level = layer_of(own)
    assert level is not None, f"{own} has no place in LAYERS"
    for name in imports(path):
        if name.startswith("fastrl.") and name.split(".")[1] != own.split(".")[1]:
            below = layer_of(name)
            assert below is not None and below <= level, f"{own} imports {name}, which lies above it"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_have_one_home(path):
    relative = str(path.relative_to(ROOT))
    for package, homes in ALLOWED_HOMES.items():
        if any(name.split(".")[0] == package for name in imports(path)):
            assert relative.startswith(homes), f"{relative} imports {package}"


@pytest.mark.parametrize("folder", ["fastrl/tasks"])
def test_verifier_workers_can_stay_light(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert not {n for n in imports(path) if n.split(".")[0] in ("torch", "transformers")}, path


def test_the_root_on_the_path_registers_no_operator_twice():
    """transformers probes for `kernels`; a second import of our folder under that name would replace the operators."""
    code = """
import torch, fastrl.kernels as k
import kernels, transformers.modeling_utils
assert kernels.__version__ == "0.0.0" and not hasattr(kernels, "linear_policy_loss"), kernels
hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
targets = torch.randint(7, (5,))
k.linear_policy_loss(hidden, k.Head(weight), k.TokenRows(targets, torch.ones(5), 0.2), k.TokenLoss()).loss.backward()
print(hidden.grad.abs().sum() > 0)
"""
    installed = Path(fastrl.__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == ["tensor(True)"], result.stderr


def test_the_source_tree_says_that_it_is_not_installed(tmp_path):
    shutil.copytree(ROOT / "fastrl", tmp_path / "fastrl", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-S", "-c", "import fastrl"]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert "is fastrl's source tree, which is not usable uninstalled" in result.stderr


def test_the_repository_root_does_not_shadow_the_public_kernels_package(tmp_path):
    """From the root, beside an installed distribution named `kernels`, transformers imports and `kernels` is theirs."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '99.0'\nLayerRepository = Mode = Device = object\n")
    metadata = tmp_path / "kernels-99.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 99.0\n")
    code = "import transformers, kernels, fastrl.kernels; print(kernels.__version__, fastrl.kernels.__name__)"
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == ["99.0", "fastrl.kernels"], result.stderr
