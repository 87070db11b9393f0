"""How long a step should take at most: every completion at its longest, every rollout with gradient.

From points measured on one card with one shape (`measured`); others are extrapolated by the card's peak FLOP/s and
bytes/s. Blocks that are recomputed cost a third more of an update; frozen weights save a third of its products. Left
out: verification, second models, validation, checkpoints, what ranks exchange.
"""

import math

import torch

from fastrl.plan.cards import Card, card_of, named_card
from fastrl.plan.flops import ModelShape, Sequences
from fastrl.plan.measured import SOURCE, Phase, seconds
from fastrl.plan.workload import Workload


def expected_seconds(work: Workload, shape: ModelShape, card: Card) -> dict[Phase, float]:
    """Seconds of each phase of a step, on each rank. `generate` is missing where no engine samples."""
    config, model = work.config, work.config.model
    num_prompts = math.ceil(config.batch.prompts_per_step / work.num_ranks)
    num_sequences = num_prompts * config.batch.rollouts_per_prompt
    completion = config.sampler.max_new_tokens
    drawn = Sequences(num_prompts, num_sequences, work.sequence_tokens - completion, completion)
    num_scored = min(math.ceil(config.run.scored_rollouts / work.num_ranks), num_sequences)
    scored = Sequences(min(num_prompts, num_scored), num_scored, drawn.prompt, completion)
    found: dict[Phase, float] = {}
    if work.is_vllm:
        num_rounds = math.ceil(num_sequences / config.sampler.batch_size)
        found["generate"] = seconds("generate", shape, drawn, card, num_rounds)
    thirds = 3 + model.gradient_checkpointing - bool(model.lora_rank)
    found["score"] = seconds("score", shape, scored, card)
    found["update"] = seconds("update", shape, drawn, card) * thirds / 3
    return found


def expected_text(work: Workload, shape: ModelShape, card_name: str = "") -> str:
    """One line; without a number where nothing was measured. card_name: empty for the GPU of this machine.

    ValueError for the name of an unknown card.
    """
    card, device = None, "a CPU"
    if card_name:
        card, device = named_card(card_name), card_name
    elif work.device.type == "cuda" and torch.cuda.is_available():
        device = torch.cuda.get_device_name(work.device)
        card = card_of(device)
    elif work.device.type == "cuda":
        device = "a GPU that is not here (--card NAME extrapolates to a known one)"
    if card is None or work.is_on_cpu:
        return f"expected seconds a step: nothing was measured on {'a CPU' if work.is_on_cpu else device}"
    if work.dtype != torch.bfloat16:
        return f"expected seconds a step: nothing was measured with weights in {work.dtype}"
    found = expected_seconds(work, shape, card)
    parts = [f"{phase} {value:.2g} s" if value < 10 else f"{phase} {value:.0f} s" for phase, value in found.items()]
    missing = "" if work.is_vllm else "; the embedded sampler was not measured"
    return (
        f"expected a step on {card.name}, at most: {', '.join(parts)}{missing} (from points measured on {SOURCE}; "
        "other shapes and cards are extrapolated by peak FLOP/s and bytes/s)"
    )
