"""The critic: a causal LM's backbone with a scalar head, which says what reward is still to come."""

from typing import Literal, overload

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastrl.policy.micro_batch import MicroBatch
from fastrl.policy.model import Backbone


class Critic(Backbone):
    """V(x, y_<t) for each completion token y_t: w·h_{t−1} + b, float32, of the hidden state that predicts the token.

    model: a causal LM, whose backbone is taken over and whose head is let go. w and b are float32 and start at 0, so
    that an untrained critic expects nothing.
    """

    def __init__(self, model: PreTrainedModel):
        width = model.get_output_embeddings().weight.shape[1]
        super().__init__(model.base_model)
        self.value_head = nn.Linear(width, 1, dtype=torch.float32, device=self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @overload
    def forward(self, batch: MicroBatch, mode: Literal["loss"] = "loss") -> Tensor: ...
    @overload
    def forward(self, batch: MicroBatch, mode: Literal["score"]) -> tuple[Tensor]: ...
    def forward(self, batch: MicroBatch, mode: Literal["loss", "score"] = "loss") -> Tensor | tuple[Tensor]:
        """loss: (N,) float32 values that can be differentiated. score: the same as a tuple of one, without gradient."""
        if mode == "score":
            with torch.no_grad():
                return (self._values(batch),)
        return self._values(batch)

    def _values(self, batch: MicroBatch) -> Tensor:
        weight_H, bias_1 = self.value_head.weight[0].float(), self.value_head.bias.float()
        return self.hidden_states(batch).float() @ weight_H + bias_1
