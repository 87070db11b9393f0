"""Bytes that training a model takes, from its config alone: two micro-batches run on tensors without storage.

Every storage that the backbone's forward and backward would make is counted while it lives, so recomputed blocks,
windows and transients are in. Weights, gradients, masters and optimizer states are counted by number, for several
ranks as FSDP2 shards them. What it leaves out: scratch space inside a matrix product or an attention kernel, the
libraries, and what an allocator keeps of freed blocks.
"""

import weakref
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fastrl.config.schema import ModelConfig, OptimizerConfig
from fastrl.kernels import chunks
from fastrl.policy.attention import AttentionChoice, use_packed_attention
from fastrl.policy.lora import attach
from fastrl.policy.micro_batch import computed_tokens
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.base import gradient_dtype
from fastrl.policy.optimizer.bytes import optimizer_bytes
from fastrl.policy.packing import cut_micro_batches
from fastrl.policy.recompute import blocks_of, recompute_blocks
from fastrl.rollouts import Rollouts

LOSS_ROW_BYTES = 64  # per scored token: log-probs, entropy, weights, targets and the like


@dataclass(frozen=True)
class Footprint:
    """Bytes by part, on each rank; static and the larger of computing and update add up to the peak.

    activations: kept by the backbone's forward; logits: one chunk of them and the head's gradient; working: what the
    loss and the backward need beyond that at their fullest moment; gathered: parameters and gradients that several
    ranks hold unsharded meanwhile; update: what the end of a backward over several ranks or an optimizer step needs.
    """

    weights: int
    gradients: int
    masters: int
    optimizer: int
    activations: int
    logits: int
    working: int
    gathered: int
    update: int

    @property
    def static(self) -> int:
        """What stays between micro-batches."""
        return self.weights + self.gradients + self.masters + self.optimizer

    @property
    def computing(self) -> int:
        """What comes and goes with a micro-batch."""
        return self.activations + self.logits + self.working + self.gathered

    @property
    def peak(self) -> int:
        return self.static + max(self.computing, self.update)


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made inside the block that are still alive, and the most there ever were.

    existing: tensors made before, whose storages do not count when an operation returns a view of them. uncounted:
    operations whose results count for nothing.
    """

    def __init__(self, existing: Iterable[Tensor] = (), uncounted: Container[Callable] = ()):
        super().__init__()
        self.uncounted = uncounted
        self.live = self.peak = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in existing)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), 0 if func in self.uncounted else tensor.untyped_storage().nbytes())
        return result

    def _add(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        weakref.finalize(storage, self._remove, num_bytes)
        self.live += num_bytes
        self.peak = max(self.peak, self.live)

    def _remove(self, num_bytes: int) -> None:
        self.live -= num_bytes


@contextmanager
def storageless_model(
    architecture: PreTrainedConfig, dtype: torch.dtype, attention: AttentionChoice, settings: ModelConfig
) -> Iterator[PreTrainedModel]:
    """A model whose tensors have shapes and no storage, with the blocks recomputed and the adapters that `settings` ask
    for; use it inside the block.
    """
    with FakeTensorMode():
        implementation = None if attention.is_packed else attention.path
        model = AutoModelForCausalLM.from_config(architecture, dtype=dtype, attn_implementation=implementation).eval()
        if attention.is_packed:
            path = "varlen" if attention.path.startswith("flash_attention") else attention.path  # same tensors kept
            use_packed_attention(model, path)
        if settings.gradient_checkpointing:
            recompute_blocks(model)
        if settings.lora_rank:
            _attach_storageless(model, settings)
        yield model


def _attach_storageless(model: PreTrainedModel, settings: ModelConfig) -> None:
    """peft moves new adapters to their layer, which tensors without storage refuse; those made on meta it leaves."""
    with torch.device("meta"):
        attach(model, settings, None, seed=0)
    for module in model.modules():
        for name, made in list(module.named_parameters(recurse=False)):
            if made.device.type == "meta":
                setattr(module, name, nn.Parameter(torch.empty(made.shape, dtype=model.dtype)))


def footprint(
    model: PreTrainedModel,
    token_budget: int,
    sequence_tokens: int,
    device_type: str,
    optimizer: OptimizerConfig,
    num_ranks: int = 1,
) -> Footprint:
    """Of training the `storageless_model` on micro-batches as full as sequences of `sequence_tokens` make them.

    num_ranks > 1 or offload: every parameter sharded by FSDP2, in float32 where the optimizer keeps masters (they are
    the shards); offload: weights, gradients, masters and optimizer are bytes of CPU memory.
    """
    parameters, is_sharded = list(model.parameters()), num_ranks > 1 or optimizer.offload
    for parameter in (p for p in parameters if p.requires_grad):
        parameter.grad_dtype = gradient_dtype(parameter, optimizer)
    policy, rollouts = Policy(model), _full_batch(token_budget, sequence_tokens, Policy(model).is_packed)
    sparse = () if is_sharded else (torch.ops.aten.embedding_dense_backward.default,)  # rows of it only: `vocabulary`
    with LiveBytes([*parameters, *model.buffers()], sparse) as live:
        for _ in range(2):  # the second finds the gradients of the first
            activations, logits = _forward_backward(policy, rollouts, device_type, live, is_sharded=is_sharded)
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
    working = live.peak - gradients - activations - logits
    model.zero_grad()
    stored = _shards(parameters, optimizer, num_ranks) if is_sharded else parameters
    kept = optimizer_bytes(stored, optimizer)
    gathered, reduced = _unsharded_bytes(model, num_ranks, optimizer.offload) if is_sharded else (0, 0)
    update = max(kept.step, reduced)
    return Footprint(
        _num_bytes(stored), kept.gradients, kept.masters, kept.states, activations, logits, working, gathered, update
    )


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _shards(parameters: list[Tensor], optimizer: OptimizerConfig, num_ranks: int) -> list[Tensor]:
    """What the first rank stores: an equal part of the rows, rounded up."""
    return [
        torch.empty(
            (-(-len(p) // num_ranks), *p.shape[1:]),
            dtype=torch.float32 if optimizer.kind == "adamw" else p.dtype,
            device="meta",
            requires_grad=p.requires_grad,
        )
        for p in parameters
    ]


def _unsharded_bytes(model: PreTrainedModel, num_ranks: int, is_offloaded: bool) -> tuple[int, int]:
    """(in the backward, at its end), in the model's dtype but for what is being reduced, which is float32.

    In the backward: weights of the root (embedding, head) and of two blocks, one of them prefetched; gradients of the
    root and a block; the block's to be reduced; a float32 shard on its way from CPU memory. At the end: the root's
    weights, gradients, these to be reduced, and this rank's part of their sum.
    """
    blocks = [_num_bytes(block.parameters()) for block in blocks_of(model)]
    root, block = _num_bytes(model.parameters()) - sum(blocks), max(blocks, default=0)
    widening = 4 // model.dtype.itemsize
    coming = widening * block // num_ranks if is_offloaded else 0
    return 2 * root + 3 * block + widening * block + coming, 2 * root + widening * root + widening * root // num_ranks


def _full_batch(token_budget: int, sequence_tokens: int, is_packed: bool) -> Rollouts:
    """Sequences of one length, each with a prompt of its own; the last cut to fill the budget when packed."""
    sequence_tokens = min(sequence_tokens, token_budget)
    lengths = [sequence_tokens] * (token_budget // sequence_tokens)
    rest = token_budget - sum(lengths)
    if is_packed and rest > 1:
        lengths.append(rest)
    rollouts = Rollouts.of([[i] for i in range(len(lengths))], [[0] * n for n in lengths])
    assert len(cut_micro_batches(rollouts, token_budget, is_packed=is_packed)) == 1
    assert computed_tokens(rollouts, is_packed=is_packed) <= token_budget
    return rollouts


def _chunk_rows(num_rows: int, weight_VH: Tensor, device_type: str, *, has_buffer: bool) -> int:
    """`chunks.chunk_rows` for a head that will live on `device_type`; a storageless one lives on the CPU."""
    has_spare = weight_VH.requires_grad and weight_VH.dtype != torch.float32 and not has_buffer
    spare = 4 * weight_VH.numel() if has_spare else 0
    weight_VH = weight_VH.detach()
    if device_type == "cpu":
        return chunks.chunk_rows(num_rows, weight_VH, spare, has_buffer=has_buffer)
    row_bytes = weight_VH.shape[0] * weight_VH.element_size()
    budget = max(chunks.CUDA_LOGIT_BYTES, chunks.CUDA_MIN_ROWS * row_bytes)
    return num_rows if num_rows * row_bytes <= budget + spare else budget // row_bytes


def _forward_backward(
    policy: Policy, rollouts: Rollouts, device_type: str, live: LiveBytes, *, is_sharded: bool
) -> tuple[int, int]:
    """Makes the tensors of one micro-batch; returns bytes: its activations; its logits and the head's gradient.

    The latter is none where the head's float32 `.grad` takes it directly (`vocabulary`), as the embedding's does.
    """
    embedding = policy.model.get_input_embeddings().weight
    if embedding.requires_grad and embedding.grad is None and not is_sharded:
        embedding.grad = torch.empty_like(embedding, dtype=embedding.grad_dtype).detach()
    before = live.live
    hidden_NH = policy.hidden_states(policy.micro_batch(rollouts))
    activations = live.live - before
    weight_VH = policy.head().weight
    num_rows, itemsize = hidden_NH.shape[0], weight_VH.element_size()
    has_buffer = weight_VH.requires_grad and weight_VH.grad_dtype == torch.float32 and not is_sharded
    if has_buffer and weight_VH.grad is None:
        weight_VH.grad = torch.empty_like(weight_VH, dtype=torch.float32).detach()
    size = _chunk_rows(num_rows, weight_VH, device_type, has_buffer=has_buffer)
    grad_hidden, grad_weight = torch.empty_like(hidden_NH), None
    columns = hidden_NH.new_empty(num_rows, LOSS_ROW_BYTES, dtype=torch.uint8)
    logits = hidden_NH.new_empty(size, weight_VH.shape[0])
    num_bytes = logits.numel() * itemsize
    if weight_VH.requires_grad and not has_buffer:
        dtype = weight_VH.dtype if size >= num_rows else torch.float32
        grad_weight = torch.empty_like(weight_VH, dtype=dtype).detach()
        num_bytes += grad_weight.numel() * grad_weight.element_size()
    del logits
    gradients = [grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype)]
    del grad_weight, grad_hidden, columns
    _HandOut.apply(gradients, hidden_NH, weight_VH).backward()
    return activations, num_bytes


class _HandOut(torch.autograd.Function):
    """Holds the loss's gradients until the backward takes them, and no longer."""

    @staticmethod
    def forward(ctx, gradients: list[Tensor | None], hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
        ctx.gradients = gradients
        return hidden_NH.new_empty(())

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[None, Tensor, Tensor | None]:
        hidden, weight = ctx.gradients
        ctx.gradients.clear()
        return None, hidden, weight
