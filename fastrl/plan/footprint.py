"""Bytes that training a model takes, from its config alone: two micro-batches run on tensors without storage.

Every storage that the backbone's forward and backward would make is counted while it lives: recomputed blocks, windows
and transients included. Weights, gradients, masters and optimizer states are counted by number, for several
ranks as FSDP2 shards them. What it leaves out: scratch space inside a matrix product or an attention kernel, the
libraries, and what an allocator keeps of freed blocks.
"""

import copy
import weakref
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fastrl.config.schema import ModelConfig, OptimizerConfig
from fastrl.kernels import chunks
from fastrl.policy.attention import AttentionChoice, use_packed_attention
from fastrl.policy.critic import Critic
from fastrl.policy.lora import attach
from fastrl.policy.micro_batch import computed_tokens
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.base import gradient_dtype
from fastrl.policy.optimizer.bytes import OptimizerBytes, optimizer_bytes
from fastrl.policy.packing import cut_micro_batches
from fastrl.policy.recompute import blocks_of, recompute_blocks
from fastrl.policy.rms_norm import keep_norm_inputs
from fastrl.rollouts import Rollouts

LOSS_ROW_BYTES = 64  # per scored token: log-probs, entropy, weights, targets and the like


@dataclass(frozen=True)
class Footprint:
    """Bytes by part on each rank. The peak is `static` plus the larger of `computing` and `update`.

    activations: what the backbone's forward keeps. logits: one chunk of them, and the head's gradient. working: what
    the loss and the backward need beyond these at their fullest moment. gathered: parameters and gradients that a rank
    of several holds unsharded meanwhile. update: what the end of a backward over several ranks, or an optimizer step,
    needs.
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
    """live: bytes of the storages that were made inside the block and are alive. peak: the most that `live` ever was.

    existing: tensors from before the block; a view of them does not count. uncounted: operations whose results do not
    count.
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


class GroupedProducts(TorchDispatchMode):
    """Shapes of the products of experts on tensors without storage: torch has a rule for bfloat16 alone.

    `_grouped_mm` takes (S,K) and (E,K,N) to (S,N) in the forward, and (K,S) and (S,N) to (E,K,N) for the weights'
    gradient, with E ends of the experts' rows.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not torch.ops.aten._grouped_mm.default or args[0].dtype == torch.bfloat16:
            return func(*args, **kwargs)
        left, right, ends = (*args, kwargs.get("offs"))[:3]
        experts = () if right.ndim == 3 else ends.shape
        return left.new_empty(*experts, left.shape[0], right.shape[-1])


@contextmanager
def storageless_model(
    architecture: PreTrainedConfig, dtype: torch.dtype, attention: AttentionChoice, settings: ModelConfig
) -> Iterator[PreTrainedModel]:
    """A model whose tensors have shapes and no storage; use it inside the block.

    Blocks are recomputed and adapters attached where `settings` ask for it. `architecture` stays as it is.
    """
    architecture = copy.deepcopy(architecture)  # from_config writes into its argument
    padded = "sdpa" if attention.path == "flex_attention" else attention.path  # which keeps the same tensors
    with FakeTensorMode(), GroupedProducts():
        implementation = None if attention.is_packed else padded
        model = AutoModelForCausalLM.from_config(architecture, dtype=dtype, attn_implementation=implementation).eval()
        prepare(model, attention, settings)
        yield model


def prepare(model: PreTrainedModel, attention: AttentionChoice, settings: ModelConfig) -> None:
    """What a run does to its model, to one whose tensors have no storage."""
    with unset_fake_temporarily():  # the formulas are compared on numbers
        keep_norm_inputs(model)
    if attention.is_packed:
        path = "varlen" if attention.path.startswith("flash_attention") else attention.path  # same tensors kept
        use_packed_attention(model, path)
    if settings.gradient_checkpointing:
        recompute_blocks(model)
    if settings.lora_rank:
        _attach_storageless(model, settings)


def _attach_storageless(model: PreTrainedModel, settings: ModelConfig) -> None:
    """Attaches adapters that are made on meta: peft moves others to their layer, which storageless tensors refuse."""
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
    """The footprint of training a `storageless_model` on micro-batches filled with sequences of `sequence_tokens`.

    With several ranks or `offload` every parameter is sharded by FSDP2. If the optimizer keeps masters the shards are
    the masters, in float32. With `offload` weights, gradients, masters and optimizer are bytes of CPU memory. Where
    gradients are reduced once an update each rank has those of the whole model, and with `offload` its device besides.
    """
    parameters, is_sharded = list(model.parameters()), num_ranks > 1 or optimizer.offload
    for parameter in (p for p in parameters if p.requires_grad):
        parameter.grad_dtype = gradient_dtype(parameter, optimizer)
    stored = _shards(parameters, optimizer, num_ranks) if is_sharded else parameters
    kept = optimizer_bytes(stored, optimizer)
    activations, logits, working = _computing(model, token_budget, sequence_tokens, device_type, is_sharded)
    gathered, reduced = _unsharded_bytes(model, num_ranks, optimizer.offload) if is_sharded else (0, 0)
    gradients = kept.gradients
    if is_sharded and optimizer.reduce_every == "update":
        whole = optimizer_bytes(parameters, optimizer).gradients
        gathered, gradients = (gathered + whole, gradients) if optimizer.offload else (gathered, whole)
    return Footprint(
        weights=num_bytes(stored),
        gradients=gradients,
        masters=kept.masters,
        optimizer=kept.states,
        activations=activations,
        logits=logits,
        working=working,
        gathered=gathered,
        update=max(kept.step, reduced),
    )


def critic_bytes(model: PreTrainedModel, optimizer: OptimizerConfig, num_ranks: int = 1) -> tuple[int, OptimizerBytes]:
    """(weights, the optimizer's) of a critic on the backbone of a `storageless_model`, sharded as the policy is."""
    parameters = list(Critic(model).parameters())
    stored = _shards(parameters, optimizer, num_ranks) if num_ranks > 1 or optimizer.offload else parameters
    return num_bytes(stored), optimizer_bytes(stored, optimizer)


def _computing(
    model: PreTrainedModel, token_budget: int, sequence_tokens: int, device_type: str, is_sharded: bool
) -> tuple[int, int, int]:
    """(activations, logits, working) of two micro-batches; the second finds the gradients of the first."""
    parameters, policy = list(model.parameters()), Policy(model)
    rollouts = _full_batch(token_budget, sequence_tokens, policy.is_packed)
    sparse = () if is_sharded else (torch.ops.aten.embedding_dense_backward.default,)  # rows of it only: `vocabulary`
    with LiveBytes([*parameters, *model.buffers()], sparse) as live:
        for _ in range(2):
            activations, logits = _forward_backward(policy, rollouts, device_type, live, is_sharded=is_sharded)
    gradients = num_bytes(p.grad for p in parameters if p.grad is not None)
    model.zero_grad()
    return activations, logits, live.peak - gradients - activations - logits


def num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _shards(parameters: list[Tensor], optimizer: OptimizerConfig, num_ranks: int) -> list[Tensor]:
    """What the first rank stores of each parameter: an equal part of its rows, rounded up."""
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
    """Bytes that a rank holds unsharded: (in the backward, at its end). What is being reduced is float32.

    In the backward: weights of the root (embedding, head) and of two blocks, one of them prefetched; gradients of the
    root and of a block, and the latter once more to be reduced; with offload a float32 shard that comes from CPU
    memory. At the end: the root's weights, its gradients, these to be reduced, and this rank's part of their sum.
    """
    blocks = [num_bytes(block.parameters()) for block in blocks_of(model)]
    root, block = num_bytes(model.parameters()) - sum(blocks), max(blocks, default=0)
    widening = 4 // model.dtype.itemsize
    coming = widening * block // num_ranks if is_offloaded else 0
    return 2 * root + 3 * block + widening * block + coming, 2 * root + widening * root + widening * root // num_ranks


def _full_batch(token_budget: int, sequence_tokens: int, is_packed: bool) -> Rollouts:
    """Sequences of one length, each with its own prompt; packed, the last one is cut so that the budget is full."""
    sequence_tokens = min(sequence_tokens, token_budget)
    lengths = [sequence_tokens] * (token_budget // sequence_tokens)
    rest = token_budget - sum(lengths)
    if is_packed and rest > 1:
        lengths.append(rest)
    rollouts = Rollouts.of([[i] for i in range(len(lengths))], [[0] * n for n in lengths])
    assert len(cut_micro_batches(rollouts, token_budget, is_packed=is_packed)) == 1
    assert computed_tokens(rollouts, is_packed=is_packed) <= token_budget
    return rollouts


def _forward_backward(
    policy: Policy, rollouts: Rollouts, device_type: str, live: LiveBytes, *, is_sharded: bool
) -> tuple[int, int]:
    """Make the tensors of one micro-batch. Returns bytes of (its activations, its logits and the head's gradient).

    Unless sharded, embedding and head have a `.grad` that loss and backward add to directly (`vocabulary`).
    """
    weight_VH = policy.head().weight
    has_buffer = weight_VH.requires_grad and weight_VH.grad_dtype == torch.float32 and not is_sharded
    if not is_sharded:
        _give_gradient(policy.model.get_input_embeddings().weight)
    before = live.live
    hidden_NH = policy.hidden_states(policy.micro_batch(rollouts))
    activations = live.live - before
    if has_buffer:
        _give_gradient(weight_VH)
    gradients, logits = loss_gradients(hidden_NH, weight_VH, device_type, has_buffer=has_buffer)
    _HandOut.apply(gradients, hidden_NH, weight_VH).backward()
    return activations, logits


def _give_gradient(weight: Tensor) -> None:
    if weight.requires_grad and weight.grad is None:
        weight.grad = torch.empty_like(weight, dtype=weight.grad_dtype).detach()


def loss_gradients(
    hidden_NH: Tensor, weight_VH: Tensor, device_type: str, *, has_buffer: bool
) -> tuple[list[Tensor | None], int]:
    """Makes the tensors of `linear_policy_loss` and multiplies nothing: ([dX, dW], bytes of a chunk's logits and dW).

    has_buffer: dW is summed in a float32 buffer of the caller's, and None here. device_type: where the head will be.
    """
    num_rows, dtype = hidden_NH.shape[0], weight_VH.dtype
    columns = hidden_NH.new_empty(num_rows, LOSS_ROW_BYTES, dtype=torch.uint8)  # noqa: F841, counted while it lives
    forms_weight = weight_VH.requires_grad and not has_buffer
    spare_bytes = 4 * weight_VH.numel() if forms_weight and dtype != torch.float32 else 0
    size = chunks.chunk_rows(num_rows, _placed(weight_VH, device_type), spare_bytes, has_buffer=has_buffer)
    buffers, grad_weight = [hidden_NH.new_empty(size, weight_VH.shape[0])], None
    if forms_weight:
        grad_weight = torch.empty_like(weight_VH, dtype=dtype if size >= num_rows else torch.float32).detach()
        buffers.append(grad_weight)
    grad_hidden, counted = torch.empty_like(hidden_NH).detach(), num_bytes(buffers)
    buffers.clear()  # the logits go before a sum in float32 is rounded
    return [grad_hidden, None if grad_weight is None else grad_weight.to(dtype)], counted


def _placed(weight: Tensor, device_type: str) -> Tensor:
    """A tensor of the weight's shape and dtype on a device that this machine may lack."""
    return torch.empty((), dtype=weight.dtype, device=device_type).expand(weight.shape)


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
