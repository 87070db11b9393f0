"""Policy, packing and loading: only response positions count, heads are checked, gradients are fp32."""

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of, scores_of
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from fastrl.config.schema import ModelConfig
from fastrl.kernels import TokenLoss
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.packing import cut_micro_batches
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.soundness import check_head

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}


def randomise(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.3)
    return model.float().eval()


def test_micro_batches_respect_the_budget_and_hold_everything_once():
    lengths = [5, 9, 1, 7, 7, 2, 9, 3]
    rollouts = batch_of(
        [Rollout([20], [30] * length) for length in lengths]
    )  # as many inputs: the last token is a target only
    parts = cut_micro_batches(rollouts, 18, is_packed=False)
    assert sorted(i for part in parts for i in part) == list(range(8))
    assert all(len(part) * max(lengths[i] for i in part) <= 18 for part in parts)
    assert cut_micro_batches(batch_of([]), 10, is_packed=False) == []
    with pytest.raises(ValueError, match=r"9 tokens does not fit batch\.micro_batch_tokens=8"):
        cut_micro_batches(rollouts, 8, is_packed=False)


def test_scores_are_the_models_own_log_probs(tiny_model):
    rollouts = [Rollout([20, 21, 22], [30, 31]), Rollout([23], [32, 33, 34, 35]), Rollout([24, 25], [36])]
    temperature = 0.7
    scores = scores_of(Policy(tiny_model, temperature=temperature), rollouts, 12)
    for r, (logprobs, entropy) in zip(rollouts, scores, strict=True):
        with torch.no_grad():
            logits = tiny_model(torch.tensor([r.ids])).logits[0].double() / temperature
        table = torch.log_softmax(logits[len(r.prompt_ids) - 1 : -1], -1)
        expected = table.gather(1, torch.tensor(r.completion_ids)[:, None]).squeeze(1)
        assert logprobs == pytest.approx(expected.tolist(), abs=2e-5)
        assert entropy == pytest.approx((-(table.exp() * table).sum(-1)).tolist(), abs=2e-5)


def test_loss_and_gradient_are_those_of_the_formula(tiny_model):
    """Two rollouts of opposite sign, one masked token, temperature ≠ 1, against plain autograd in fp64."""
    rollouts = [Rollout([20, 21], [30, 31, 32], -1.0, loss_mask=[1, 0, 1]), Rollout([22], [33], 0.5, loss_mask=[1])]
    policy = Policy(tiny_model, TokenLoss(), temperature=0.8)
    result = policy(policy.micro_batch(batch_of(rollouts), np.array([0.25, 2.0])))
    weights = [p for p in tiny_model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(result.loss, weights)
    model = tiny_model.double()
    expected = 0.0
    for r, weight in zip(rollouts, [0.25, 2.0], strict=True):
        logits = model(torch.tensor([r.ids])).logits[0] / 0.8
        table = torch.log_softmax(logits[len(r.prompt_ids) - 1 : -1], -1)
        logprobs = table.gather(1, torch.tensor(r.completion_ids)[:, None]).squeeze(1)
        expected = expected - weight * r.advantage * (logprobs * torch.tensor(r.loss_mask)).sum()
    references = torch.autograd.grad(expected, [p for p in model.parameters() if p.requires_grad])
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, reference in zip(gradients, references, strict=True):
        assert (gradient - reference).abs().max() <= 1e-4 * reference.abs().max() + 1e-7


@pytest.mark.parametrize(
    "model",
    [
        GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
        CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
        Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=5.0, sliding_window=8)),
        LlamaForCausalLM(LlamaConfig(**SMALL)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_heads_with_scales_and_softcaps_pass_the_check(model):
    check_head(randomise(model))


def test_a_head_that_does_more_is_refused_by_name():
    class OddForCausalLM(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    with pytest.raises(ValueError, match="OddForCausalLM: log-probs through its output embedding differ"):
        check_head(randomise(OddForCausalLM(LlamaConfig(**SMALL))))


def test_loading_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json there"):
        load_model(Pretrained(ModelConfig(path=str(tmp_path))))
    with pytest.raises(FileNotFoundError, match=r"no config\.json there"):
        _ = Pretrained(ModelConfig(path="./nowhere")).tokenizer


def test_cuda_without_a_device_is_refused(countdown_folder):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="sees no CUDA device"):
        load_model(Pretrained(ModelConfig(path=str(countdown_folder), device="cuda")))


def test_saved_model_loads_with_its_tokenizer(countdown_folder):
    tokenizer = Pretrained(ModelConfig(path=str(countdown_folder))).tokenizer
    ids = tokenizer("3 5 7 2=24:").input_ids
    assert tokenizer.decode(ids) == "3 5 7 2=24:" and len(ids) == 11
    model = load_model(Pretrained(ModelConfig(path=str(countdown_folder))))
    assert model.dtype == torch.float32 and not model.training
