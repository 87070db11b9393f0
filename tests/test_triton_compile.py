"""Every Triton kernel compiled ahead of time for sm_80, sm_90 and sm_100: no spills, registers and memory in bounds.

No GPU is needed; the numbers are read from the cubin with the cuobjdump inside the triton wheel.
"""

import itertools
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("ahead-of-time compilation needs TRITON_INTERPRET unset", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastrl.kernels import triton_kernels as kernels  # noqa: E402
from fastrl.kernels.triton_cluster import _policy_cluster_kernel, _score_cluster_kernel  # noqa: E402
from fastrl.kernels.triton_formulas import ROW_POINTERS, ROW_STRIDES  # noqa: E402
from fastrl.kernels.triton_launch import MAX_TAIL_TILES, MAX_TILES, cluster_options, sweep_options  # noqa: E402
from fastrl.kernels.triton_losses import NUM_PARAMETERS  # noqa: E402

ARCHITECTURES = [80, 90, 100]
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
THREAD_REGISTERS = 65536
QWEN = sweep_options(151936, has_second_sweep=True)
QWEN_SCORING = sweep_options(151936, has_second_sweep=False)
ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
VOCABULARIES = [500, 32000, 128256, 151936, 256000]
POINTERS = {"logits_ptr": None, "gradient_ptr": None, "targets_ptr": "*i64", "clipped_ptr": "*u8"}
INTEGERS = ("vocab", "num_elements", "stride_n", "stride_temperature", "stride_weights")


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    shared: int
    local: int


def signature(kernel, constants: dict, dtype: str) -> dict[str, str]:
    types = {}
    for name in kernel.arg_names:
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("_ptr"):
            types[name] = POINTERS.get(name, "*fp32") or f"*{dtype}"
        else:
            types[name] = "i32" if name in INTEGERS else "fp32"
    return types


def compile_kernel(kernel, constants: dict, architecture: int, num_warps: int, dtype: str = "bf16", num_ctas: int = 1):
    names = kernel.arg_names
    aligned = [name for name in names if name in ("logits_ptr", "gradient_ptr", "bias_ptr", "vocab", "stride_n")]
    source = ASTSource(
        fn=kernel,
        signature=signature(kernel, constants, dtype),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": num_warps, "num_ctas": num_ctas}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def disassembled(compiled, what: str, folder: Path) -> str:
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, what, cubin], capture_output=True, text=True, check=True).stdout


def resources(compiled, folder: Path) -> Usage:
    text = disassembled(compiled, "-res-usage", folder)
    found = re.search(r"REG:(\d+).*?STACK:(\d+).*?SHARED:(\d+).*?LOCAL:(\d+)", text)
    assert found, text
    return Usage(*map(int, found.groups()))


def assert_fits(compiled, architecture: int, num_warps: int, folder: Path, record) -> None:
    usage = resources(compiled, folder)
    record("registers", usage.registers)
    record("shared_bytes", usage.shared)
    assert usage.stack == 0, f"spills: {usage}"
    assert usage.local == 0, f"spills: {usage}"
    assert usage.registers * 32 * num_warps <= THREAD_REGISTERS, usage
    assert usage.shared + compiled.metadata.shared <= SHARED_LIMIT[architecture], usage


def policy_constants(surrogate: str, *, full: bool, tail: int, block: int | None = None) -> dict:
    """Of a sweeping kernel, and without `block` those that it shares with the cluster's."""
    return {
        "SURROGATE": surrogate,
        "HAS_OLD": full or surrogate != "reinforce",
        "HAS_CAP": full,
        "HAS_KL": full,
        "HAS_ENTROPY": full,
        "TAIL": tail,
        "HAS_BIAS": tail > 0,
        "WITH_GRADIENT": True,
        **({"BLOCK_V": block} if block else {}),
    }


VARIANTS = {
    **{
        f"{name}-{'full' if full else 'plain'}": (name, full, 0)
        for name, full in itertools.product(NUM_PARAMETERS, (False, True))
    },
    "ppo_clip-full-bias": ("ppo_clip", True, 1),
    "ppo_clip-full-softcap": ("ppo_clip", True, 2),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_policy_rows(architecture, variant, tmp_path, record_property) -> None:
    surrogate, full, tail = variant
    constants = policy_constants(surrogate, full=full, tail=tail, block=QWEN["BLOCK_V"])
    compiled = compile_kernel(kernels._policy_rows_kernel, constants, architecture, QWEN["num_warps"])
    assert_fits(compiled, architecture, QWEN["num_warps"], tmp_path, record_property)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_policy_rows_in_other_dtypes(architecture, dtype, tmp_path, record_property) -> None:
    constants = policy_constants("ppo_clip", full=True, tail=0, block=QWEN["BLOCK_V"])
    compiled = compile_kernel(kernels._policy_rows_kernel, constants, architecture, QWEN["num_warps"], dtype)
    assert_fits(compiled, architecture, QWEN["num_warps"], tmp_path, record_property)


@pytest.mark.parametrize("tail", [0, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_score_rows(architecture, tail, tmp_path, record_property) -> None:
    constants = {"TAIL": tail, "HAS_BIAS": tail > 0, "BLOCK_V": QWEN_SCORING["BLOCK_V"]}
    num_warps = QWEN_SCORING["num_warps"]
    compiled = compile_kernel(kernels._score_rows_kernel, constants, architecture, num_warps)
    assert_fits(compiled, architecture, num_warps, tmp_path, record_property)


def compile_cluster(kernel, constants: dict, architecture: int, vocab: int, dtype: str, max_tiles: int = MAX_TILES):
    """(compiled, options) in the shape that would be launched; nothing compiled where no shape holds the row."""
    options = cluster_options(vocab, ITEMSIZE[dtype], max_tiles, 8 if architecture >= 90 else 1)
    if options is None:
        return None, None
    constants = constants | {name: options[name] for name in ("TILE_V", "NUM_TILES")}
    sizes = options["num_warps"], dtype, options["num_ctas"]
    return compile_kernel(kernel, constants, architecture, *sizes), options


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("architecture", [90, 100])
def test_policy_cluster(architecture, variant, tmp_path, record_property) -> None:
    """All but heads with a bias, which the chooser sends to the sweeps: those spill."""
    surrogate, full, tail = variant
    constants = policy_constants(surrogate, full=full, tail=tail) | {"HAS_BIAS": False}
    max_tiles = MAX_TAIL_TILES if tail else MAX_TILES
    compiled, options = compile_cluster(_policy_cluster_kernel, constants, architecture, 151936, "bf16", max_tiles)
    assert_fits(compiled, architecture, options["num_warps"], tmp_path, record_property)
    assert compiled.metadata.num_ctas == options["num_ctas"] == 8


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tail", [0, 2])
def test_policy_cluster_in_other_shapes(tail, architecture, vocab, dtype, tmp_path, record_property) -> None:
    constants = policy_constants("ppo_clip", full=True, tail=tail) | {"HAS_BIAS": False}
    max_tiles = MAX_TAIL_TILES if tail else MAX_TILES
    compiled, options = compile_cluster(_policy_cluster_kernel, constants, architecture, vocab, dtype, max_tiles)
    if options:
        assert_fits(compiled, architecture, options["num_warps"], tmp_path, record_property)
    else:  # more than 16 warps of 8 CTAs hold, or of one
        assert vocab * ITEMSIZE[dtype] > (8 if architecture >= 90 else 1) * 16 * 512 * max_tiles


@pytest.mark.parametrize("dtype", ITEMSIZE)
@pytest.mark.parametrize("architecture", [90, 100])
def test_score_cluster(architecture, dtype, tmp_path, record_property) -> None:
    constants = {"TAIL": 0, "HAS_BIAS": False}
    compiled, options = compile_cluster(_score_cluster_kernel, constants, architecture, 151936, dtype)
    assert_fits(compiled, architecture, options["num_warps"], tmp_path, record_property)


def test_a_cluster_reads_and_writes_each_tile_once_and_leaves_room_for_another_row(tmp_path) -> None:
    """Of 16 bytes a thread; the CTAs wait for each other's numbers at barriers of the cluster."""
    constants = policy_constants("ppo_clip", full=True, tail=0)
    compiled, options = compile_cluster(_policy_cluster_kernel, constants, 90, 151936, "bf16")
    assert options == {"TILE_V": 16384, "NUM_TILES": 10, "num_warps": 8, "num_ctas": 8}
    code = disassembled(compiled, "-sass", tmp_path)
    assert len(re.findall(r"\bLDG\.E\.128\b", code)) == len(re.findall(r"\bSTG\.E\.128\b", code)) == 10
    target, barrier, store = (code.index(name) for name in ("LDG.E.U16", "UCGABAR_WAIT", "STG.E.128"))
    assert target < barrier < store, "every CTA reads the target's logit before another one may overwrite it"
    assert not re.search(r"\b(LDL|STL)\b", code)
    assert 2 * 8 * 32 * resources(compiled, tmp_path).registers <= THREAD_REGISTERS


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scale(architecture, tmp_path, record_property) -> None:
    compiled = compile_kernel(kernels._scale_kernel, {"BLOCK": 4096}, architecture, 4)
    assert_fits(compiled, architecture, 4, tmp_path, record_property)


def test_one_row_fills_a_hopper_multiprocessor(tmp_path) -> None:
    """Two resident rows per multiprocessor would be 80 MB in flight: more than the L2 that the second sweep needs."""
    constants = policy_constants("reinforce", full=False, tail=0, block=QWEN["BLOCK_V"])
    usage = resources(compile_kernel(kernels._policy_rows_kernel, constants, 90, QWEN["num_warps"]), tmp_path)
    assert 2 * usage.registers * 32 * QWEN["num_warps"] > THREAD_REGISTERS, usage


@pytest.mark.parametrize("kernel", [kernels._policy_rows_kernel, _policy_cluster_kernel])
def test_row_offsets_are_64_bit(kernel) -> None:
    """Row times stride is multiplied after widening, in the intermediate code itself."""
    sizes = {"BLOCK_V": 1024} if kernel is kernels._policy_rows_kernel else {"TILE_V": 1024, "NUM_TILES": 2}
    constants = policy_constants("reinforce", full=False, tail=0) | sizes
    text = compile_kernel(kernel, constants, 90, 4).asm["ttir"]
    row = re.search(r"(%\w+) = tt.get_program_id x", text)[1]
    wide = re.search(rf"(%\w+) = arith.extsi {row}\w* : i32 to i64", text)
    assert wide, text[:3000]
    assert re.search(rf"arith.muli {wide[1]}\w*, .* : i64", text), text[:3000]
    assert not re.search(rf"arith.muli {row}\b.* : i32", text), text[:3000]


@pytest.mark.parametrize("surrogate", NUM_PARAMETERS)
def test_every_constant_can_be_serialised(surrogate) -> None:
    """A process with a vLLM engine on CUDA has a hook that writes each kernel's specialisation as JSON."""
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import serialize_specialization_data

    target = GPUTarget("cuda", 90, 32)
    for kernel, constants in (
        (kernels._policy_rows_kernel, policy_constants(surrogate, full=True, tail=2, block=1024)),
        (kernels._score_rows_kernel, {"TAIL": 2, "HAS_BIAS": True, "BLOCK_V": 1024}),
        (_policy_cluster_kernel, policy_constants(surrogate, full=True, tail=2) | {"TILE_V": 512, "NUM_TILES": 2}),
        (_score_cluster_kernel, {"TAIL": 2, "HAS_BIAS": True, "TILE_V": 512, "NUM_TILES": 2}),
        (kernels._scale_kernel, {"BLOCK": 4096}),
    ):
        constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        for value in constexprs.values():
            assert json.loads(json.dumps(value)) == value  # older versions of Triton serialise nothing else
        options = make_backend(target).parse_options({"num_warps": 4})
        written = serialize_specialization_data("kernel", {}, constexprs, {}, options, "key", target)
        assert json.loads(written)["constant_vals"] == list(constexprs.values())


def test_nothing_compiles_anew_per_length_or_temperature() -> None:
    """The number of rows is no argument, the temperature a pointer; constants depend on the model and the loss."""
    for kernel in (
        kernels._policy_rows_kernel,
        kernels._score_rows_kernel,
        _policy_cluster_kernel,
        _score_cluster_kernel,
    ):
        assert not {"num_rows", "temperature", "num_tokens"} & set(kernel.arg_names)
        constants = {p.name for p in kernel.params if p.is_constexpr}
        allowed = {
            "SURROGATE", "HAS_OLD", "HAS_CAP", "HAS_KL", "HAS_ENTROPY", "TAIL", "HAS_BIAS", "WITH_GRADIENT", "BLOCK_V",
            "TILE_V", "NUM_TILES",
        }  # fmt: skip
        assert constants <= allowed
        for parameter in kernel.params:
            if parameter.name in ROW_POINTERS:
                assert parameter.do_not_specialize_on_alignment, parameter.name
            elif parameter.name.endswith("_ptr"):
                assert parameter.name in ("logits_ptr", "bias_ptr")
            if parameter.name in ROW_STRIDES:
                assert parameter.do_not_specialize, parameter.name
    assert QWEN == {"BLOCK_V": 8192, "num_warps": 32}
    assert QWEN_SCORING == {"BLOCK_V": 4096, "num_warps": 8}
    assert sweep_options(500, has_second_sweep=True) == {"BLOCK_V": 512, "num_warps": 2}
