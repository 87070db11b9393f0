"""What compiled blocks keep for the backward: the compiler chooses it, so it is asked, on tensors without storage."""

import copy

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fastrl.config.schema import ModelConfig
from fastrl.plan.footprint import prepare
from fastrl.policy.attention import AttentionChoice
from fastrl.policy.model import Policy
from fastrl.policy.recompute import blocks_of
from fastrl.rollouts import Rollouts

NUM_TOKENS = 64


def bytes_left_out(
    architecture: PreTrainedConfig, dtype: torch.dtype, attention: AttentionChoice, settings: ModelConfig
) -> float:
    """Bytes a token that autograd keeps for plain blocks and not for compiled ones.

    0 where blocks are recomputed, which keep neither, where rows are padded, which is not counted, and where the
    compiler fails: a run whose setting is auto goes on with plain blocks and says so.
    """
    if settings.gradient_checkpointing or not attention.is_packed:
        return 0.0
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(architecture), dtype=dtype).eval()
        prepare(model, attention, settings)
    plain = kept_bytes(model)
    for block in blocks_of(model):
        block.forward = torch.compile(block.forward, dynamic=True, backend="aot_eager_decomp_partition")
    try:
        return (plain - kept_bytes(model)) / NUM_TOKENS
    except RuntimeError:  # what Dynamo raises is made of it; the run meets it too, and says what it was
        return 0.0


def kept_bytes(model: PreTrainedModel) -> int:
    """Bytes besides parameters that the forward of one sequence of NUM_TOKENS tokens keeps for its backward."""
    policy, kept = Policy(model), {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.row(policy.micro_batch(Rollouts.of([[0]], [[0] * NUM_TOKENS])))
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())
