"""The house rules: imports point down only, heavy packages have one home, and our kernels/ shadows nobody's package."""

import ast
import graphlib
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import fastrl

ROOT = Path(__file__).resolve().parent.parent

# Rooms of fastrl, lowest first. A module may import from its own room and from those below.
LAYERS = [
    {"kernels", "process", "statistics"},
    {"rollouts"},
    {"learning"},
    {"config"},
    {"tasks"},
    {"policy"},
    {"prompts"},
    {"sampling", "records"},
    {"sample_and_judge", "learners"},
    {"update", "evaluation", "warmup", "doctor", "plan", "ledger", "audit"},
    {"trainer", "hub", "watch"},
    {"run"},
    {"cli"},
]
MAX_TOP_FILES, MAX_FILE, MAX_FUNCTION, MAX_KERNEL, MAX_MEDIAN = 9, 350, 60, 130, 9  # lines but for the first
ALLOWED_HOMES = {
    "vllm": ("fastrl/sampling/vllm_engine.py", "fastrl/sampling/side_effects.py"),
    "peft": ("fastrl/policy/lora.py",),
    "triton": ("kernels/triton",),
    "flash_attn": ("fastrl/policy/attention.py",),
    "flash_attn_interface": ("fastrl/policy/attention.py",),
    "torchao": ("fastrl/policy/optimizer/rounding.py",),
    "mpmath": ("fastrl/tasks/math_answers/values.py", "fastrl/tasks/math.py"),
    "verifiers": ("fastrl/tasks/bridges",),
    "websockets": ("fastrl/tasks/bridges/openenv_server.py",),
    "huggingface_hub": ("fastrl/hub",),
    "matplotlib": ("fastrl/records/plot.py",),
}


def sources() -> list[Path]:
    return [p for folder in ("fastrl", "kernels") for p in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    """The module's name once it is installed."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("fastrl", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sources()}


def imports(path: Path) -> set[str]:
    """Absolute names of imported modules and of what is imported from them, relative imports resolved."""
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path: Path) -> set[str]:
    """Which of our own modules a file imports, wherever in it."""
    found = {name if name in MODULES else name.rpartition(".")[0] for name in imports(path)}
    return {name for name in found if name in MODULES} - {name_of(path)}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = name_of(path)
    if own == "fastrl":
        assert not imported_modules(path), "fastrl/__init__.py exports lazily"
        return
    if room_of(own) == "kernels":
        inner = {n for n in imports(path) if n.startswith("fastrl") and not n.startswith("fastrl.kernels")}
        allowed = {"fastrl._native"} if path.name == "native.py" else set()
        assert inner <= allowed, f"kernels may import fastrl._native in native.py only, not {inner}"
    levels = {room: i for i, layer in enumerate(LAYERS) for room in layer}
    assert room_of(own) in levels, f"{own} has no place in LAYERS"
    for name in imported_modules(path) - {"fastrl"}:
        is_below = levels[room_of(name)] < levels[room_of(own)]
        assert room_of(name) == room_of(own) or is_below, f"{own} imports {name}, which does not lie below it"


def test_no_imports_go_round_in_a_circle():
    """Inside packages, too. A package's __init__ is not counted where a module of the same package asks for it."""
    below = {name: imported_modules(path) - {"fastrl"} for name, path in MODULES.items()}
    try:
        tuple(graphlib.TopologicalSorter(below).static_order())
    except graphlib.CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


def functions(path: Path) -> list[tuple[str, int]]:
    """(name, lines) of every function, decorators and nested ones included."""
    found = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(f"{path.relative_to(ROOT)}: {n.name}", n.end_lineno - n.lineno + 1) for n in found]


def test_files_and_functions_stay_small():
    assert len(list((ROOT / "fastrl").glob("*.py"))) <= MAX_TOP_FILES
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert not {name: count for name, count in lines.items() if count > MAX_FILE}
    sizes = [pair for path in sources() for pair in functions(path)]
    limits = {name: MAX_KERNEL if name.startswith("kernels/triton_kernels") else MAX_FUNCTION for name, _ in sizes}
    assert not {name: count for name, count in sizes if count > limits[name]}
    assert statistics.median(count for _, count in sizes) <= MAX_MEDIAN


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
