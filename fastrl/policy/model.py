"""The policy: one module whose forward holds backbone, head and loss (FSDP2 gathers parameters in a forward only)."""

from dataclasses import replace
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastrl.kernels import Head, PolicyLoss, TokenLoss, linear_policy_loss, token_logprobs
from fastrl.policy.attention import is_packed, packed_arguments
from fastrl.policy.micro_batch import MicroBatch, build_micro_batch
from fastrl.policy.packing import cut_micro_batches
from fastrl.process.ranks import ALONE
from fastrl.rollouts import Rollouts


class Backbone(nn.Module):
    """A Hugging Face model up to its last hidden states, packed or padded; what lies on top is the subclass's.

    device and dtype: of the forward; ranks: the processes that hold the parameters' shards (`sharding`); reduce_every:
    when they sum gradients (`reduction`).
    """

    temperature = 1.0

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.device, self.dtype = model.device, model.dtype
        self.ranks = ALONE
        self.reduce_every: Literal["micro-batch", "update"] = "micro-batch"

    @property
    def is_packed(self) -> bool:
        """Whether micro-batches run without padding."""
        return is_packed(self.model)

    def cut(self, rollouts: Rollouts, token_budget: int, *, num_ranks: int = 1) -> list[np.ndarray]:
        """Indices of the rollouts of each micro-batch; see `cut_micro_batches`."""
        return cut_micro_batches(rollouts, token_budget, is_packed=self.is_packed, num_ranks=num_ranks)

    def micro_batch(
        self,
        rollouts: Rollouts,
        token_weights_R: np.ndarray | None = None,
        shares_R: np.ndarray | None = None,
        *,
        with_sampler_logprobs: bool = False,
    ) -> MicroBatch:
        """Their tensors on the device of the forward; see `build_micro_batch`."""
        batch = build_micro_batch(
            rollouts,
            token_weights_R,
            shares_R,
            is_packed=self.is_packed,
            with_sampler_logprobs=with_sampler_logprobs,
            temperature=self.temperature,
        )
        return batch.to(self.device)

    def hidden_states(self, batch: MicroBatch) -> Tensor:
        """(N,H) hidden states that predict the completion tokens, replies left out."""
        return self.row(batch).index_select(0, batch.places_N)

    def row(self, batch: MicroBatch) -> Tensor:
        """(T,H) hidden states of all tokens."""
        if not self.is_packed:
            return self._padded(batch)
        return self.model.base_model(
            input_ids=batch.input_ids_T.unsqueeze(0),
            position_ids=batch.positions_T.unsqueeze(0),
            use_cache=False,
            **packed_arguments(batch.layout),
        ).last_hidden_state.squeeze(0)

    def _padded(self, batch: MicroBatch) -> Tensor:
        """Padded on the right: a causal model never looks at what comes later, so no mask is needed."""
        assert not batch.layout.num_prefixes, "this batch was built for a packed model"
        lengths = batch.layout.lengths
        num, width = len(lengths), max(lengths)
        sizes = torch.tensor(lengths)
        rows_T = torch.repeat_interleave(torch.arange(num), sizes, output_size=sum(lengths)).to(self.device)
        places_T = rows_T * width + batch.positions_T
        ids_BL = batch.input_ids_T.new_zeros(num * width).index_copy(0, places_T, batch.input_ids_T).view(num, width)
        return self.model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state.flatten(0, 1)[places_T]


class Policy(Backbone):
    """A Hugging Face causal LM with the token loss on top: `loss` is what a token pays; logits are / `temperature`.

    Batches that carry the sampler's log-probs are importance-weighted up to `importance_cap`.
    """

    def __init__(self, model: PreTrainedModel, loss: TokenLoss | None = None, temperature: float = 1.0):
        super().__init__(model)
        self.loss = loss or TokenLoss()
        self.importance_cap: float | None = None
        self.temperature = temperature

    def head(self) -> Head:
        """The model's head, with the scale and softcap that its config names."""
        config = self.model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        if divisor := getattr(config, "logits_scaling", None):
            scale = scale / divisor
        layer = self.model.get_output_embeddings()
        return Head(layer.weight, getattr(layer, "bias", None), getattr(config, "final_logit_softcapping", None), scale)

    @overload
    def forward(
        self, batch: MicroBatch, mode: Literal["loss"] = "loss", grad_weight: Tensor | None = None
    ) -> PolicyLoss: ...
    @overload
    def forward(self, batch: MicroBatch, mode: Literal["score"]) -> tuple[Tensor, Tensor]: ...
    def forward(
        self, batch: MicroBatch, mode: Literal["loss", "score"] = "loss", grad_weight: Tensor | None = None
    ) -> PolicyLoss | tuple[Tensor, Tensor]:
        """loss: the differentiable loss of the micro-batch. score: (logprobs, entropy), (N,) fp32, no gradient.

        grad_weight: float32 (V,H), to which the forward adds the gradient of the head's weight; the backward leaves it.
        """
        if mode == "score":
            with torch.no_grad():
                return token_logprobs(self.hidden_states(batch), self.head(), batch.rows)
        is_weighted = batch.rows.sampler_logprobs is not None
        loss = replace(self.loss, importance_cap=self.importance_cap) if is_weighted else self.loss
        return linear_policy_loss(self.hidden_states(batch), self.head(), batch.rows, loss, grad_weight=grad_weight)
