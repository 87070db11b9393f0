"""Qwen2.5-Math-7B, every parameter trained with NSR and vLLM in the process: what fits an 80 GB GPU, and eight of them.

    python bench/plan_table.py        # needs vLLM installed (it is not run) and no GPU; writes results/plan_7b.md

Predictions of `fastrl plan` from the model's config alone; nothing here was measured on a GPU. 80 GB are an H100's
79.2 GiB, of which the plan keeps 3 for CUDA, the libraries and vLLM's own working memory.
"""

import tempfile
from pathlib import Path

from transformers import Qwen2Config

from fastrl.config.schema import BatchConfig, ModelConfig, SamplerConfig, TrainConfig
from fastrl.config.settings import with_settings
from fastrl.plan.plan import GIB, Plan, make_plan
from fastrl.plan.savings import CHECKPOINTING, EIGHT_BITS, NO_MASTERS

MEMORY_GIB = 79.2
PROMPT_TOKENS, NEW_TOKENS, TOKEN_BUDGET = 1024, 3072, 16384
ROWS = [  # (GPUs, name, settings)
    (1, "default", {}),
    (1, "gradient checkpointing", CHECKPOINTING),
    (1, "… and `adamw-bf16`, bfloat16 gradients", CHECKPOINTING | NO_MASTERS),
    (1, "… and `adamw-8bit`, float32 gradients", CHECKPOINTING | {"optimizer.kind": "adamw-8bit"}),
    (1, "… and `adamw-8bit`, bfloat16 gradients", CHECKPOINTING | EIGHT_BITS),
    (1, "… and the KV cache released while training", CHECKPOINTING | EIGHT_BITS | {"sampler.release_kv_cache": True}),
    (8, "default", {}),
    (8, "gradient checkpointing", CHECKPOINTING),
    (8, "… and the KV cache released while training", CHECKPOINTING | {"sampler.release_kv_cache": True}),
]


def qwen_7b(folder: str) -> TrainConfig:
    """The model's config, written to the folder, and a run with sequences as long as its context."""
    Qwen2Config(
        hidden_size=3584,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18944,
        vocab_size=152064,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        architectures=["Qwen2ForCausalLM"],
    ).save_pretrained(folder)
    return TrainConfig(
        model=ModelConfig(folder),
        sampler=SamplerConfig(kind="vllm", max_new_tokens=NEW_TOKENS),
        batch=BatchConfig(micro_batch_tokens=TOKEN_BUDGET),
    )


def plan_of(config: TrainConfig, settings: dict[str, object], num_gpus: int) -> Plan:
    return make_plan(
        with_settings(config, settings),
        device_type="cuda",
        memory_gib=MEMORY_GIB,
        prompt_tokens=PROMPT_TOKENS,
        num_ranks=num_gpus,
    )


def row(plan: Plan, name: str) -> str:
    t = plan.training
    parts = (
        t.weights,
        plan.sampler_weights,
        t.gradients,
        t.masters + t.optimizer,
        plan.kv_cache,
        max(t.computing, t.update),
        plan.peak,
    )
    verdict = "yes" if plan.fits else "no"
    sizes = [f"{size / GIB:.1f}" for size in parts]
    cells = [plan.work.num_ranks, name, *sizes, verdict, plan.fitting_tokens or "none"]
    return f"| {' | '.join(map(str, cells))} |"


def table() -> str:
    head = (
        "| GPUs | settings | weights | vLLM's copy | gradients | masters, moments | KV cache | "
        "micro-batch or step | peak | fits | largest micro_batch_tokens |"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = qwen_7b(folder)
        rows = [row(plan_of(config, settings, num_gpus), name) for num_gpus, name, settings in ROWS]
    return "\n".join([head, "|---" * 11 + "|", *rows])


def report() -> str:
    return (
        f"# Qwen2.5-Math-7B on GPUs of {MEMORY_GIB:.1f} GiB (80 GB): predictions\n\n    python bench/plan_table.py\n\n"
        f"Full-parameter training, vLLM in the process, sequences of {PROMPT_TOKENS} + {NEW_TOKENS} tokens, "
        f"{TOKEN_BUDGET} tokens a micro-batch; GiB on each GPU. Predicted from shapes, not measured on a GPU.\n\n"
        f"{table()}\n"
    )


def main() -> None:
    text = report()
    path = Path(__file__).parent / "results" / "plan_7b.md"
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
