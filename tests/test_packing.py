"""A pack is worth its sequences: nothing leaks, bit for bit, and one sequence at a time gives the same."""

import random

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of, drawn, group_of, scores_of
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from fastrl.kernels import TokenLoss
from fastrl.policy.attention import (
    _FORWARDS,
    PACKED_PATHS,
    Pattern,
    _attention,
    _sdpa,
    choose_attention,
    is_packed,
    use_packed_attention,
)
from fastrl.policy.attention_segments import PADDED_SCORES, PADDED_SHARE, Layout
from fastrl.policy.layer_norm import sum_layer_norms_in_float32
from fastrl.policy.micro_batch import build_micro_batch
from fastrl.policy.model import Policy
from fastrl.policy.soundness import pack
from fastrl.sampling.embedded import EmbeddedSampler
from fastrl.sampling.protocol import SamplingSettings

SHAPE = {
    "vocab_size": 123,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MIXED = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "qwen2.5": Qwen2Config(**SHAPE),
    "qwen2 window": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": Qwen3Config(**SHAPE, head_dim=12),
    "llama": LlamaConfig(**SHAPE, attention_bias=True),
    "mistral window": MistralConfig(**SHAPE, sliding_window=8),
    "gemma2": Gemma2Config(**SHAPE, **MIXED, attn_logit_softcapping=2.0, query_pre_attn_scalar=3),
    "gemma3": Gemma3TextConfig(**SHAPE, **MIXED, query_pre_attn_scalar=3),
    "granite": GraniteConfig(**SHAPE, attention_multiplier=0.7, logits_scaling=4.0),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.25),
    "gpt2": GPT2Config(vocab_size=123, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1),
}
LENGTHS = [17, 9, 9, 30, 2, 9, 1]  # equal neighbours, equal strangers, longer than the window, one token
CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("name", FAMILIES)


def random_model(config, dtype=torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter.float()) * 0.3
    return model.to(dtype)


def packed_model(name: str, dtype=torch.float32) -> PreTrainedModel:
    model = random_model(FAMILIES[name], dtype)
    sum_layer_norms_in_float32(model)
    choice = pack(model, choose_attention("auto", CPU, dtype, model.config))
    assert choice.is_packed and is_packed(model), choice
    return model


def rollouts_of(lengths: list[int], seed: int = 0) -> list[Rollout]:
    """Sequences of so many inputs, with a prompt of one token each, no two the same."""
    generator = random.Random(seed)
    rows = [[generator.randrange(2, 123) for _ in range(length)] for length in lengths]
    prompts = generator.sample(range(2, 122), len(lengths))
    pairs = enumerate(zip(prompts, rows, strict=True))
    return [Rollout([p], r, 0.5 - i % 2) for i, (p, r) in pairs]


def mixed_pack() -> list[Rollout]:
    """Single sequences around two groups whose prompts lie on the row once, one of them longer than the window."""
    singles = rollouts_of(LENGTHS)
    return singles[:3] + group_of(11, [6, 6, 13, 1], 7) + singles[3:] + group_of(5, [9, 4, 6], 8)


def hidden(model: PreTrainedModel, rollouts: list[Rollout]) -> torch.Tensor:
    """(N,H) hidden states that predict the completion tokens, in the order of the rollouts."""
    policy = Policy(model)
    return policy.hidden_states(policy.micro_batch(batch_of(rollouts)))


def gradients(model: PreTrainedModel, batches: list[list[Rollout]]) -> list[torch.Tensor]:
    weights = list(model.parameters())
    sums = [torch.zeros_like(w) for w in weights]
    for batch in batches:
        policy = Policy(model, TokenLoss())
        loss = policy(policy.micro_batch(batch_of(batch), np.full(len(batch), 0.1))).loss
        for total, part in zip(sums, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            total += 0 if part is None else part
    return sums


def renewed(ids: list[int]) -> list[int]:
    """Every token another one."""
    return [2 + (i - 2 + 1 + 7 * t % 120) % 121 for t, i in enumerate(ids)]


def change_sequence(rollouts: list[Rollout], which: int) -> set[int]:
    """Prompt and completion of one that shares its prompt with nobody."""
    rollouts[which].prompt_ids, rollouts[which].completion_ids = [122], renewed(rollouts[which].completion_ids)
    return {which}


def change_completion(rollouts: list[Rollout], which: int) -> set[int]:
    rollouts[which].completion_ids = renewed(rollouts[which].completion_ids)
    return {which}


def change_group(rollouts: list[Rollout], which: int) -> set[int]:
    """The prompt and all completions of a group."""
    members = {i for i, r in enumerate(rollouts) if r.prompt_ids == rollouts[which].prompt_ids}
    for i in members:
        rollouts[i].prompt_ids = renewed(rollouts[i].prompt_ids)
        rollouts[i].completion_ids = renewed(rollouts[i].completion_ids)
    return members


@every_family
@pytest.mark.parametrize(
    ("change", "which"),
    [(change_sequence, 0), (change_sequence, 7), (change_completion, 4), (change_completion, 13), (change_group, 3)],
)
def test_changing_every_token_of_one_sequence_changes_no_bit_of_the_others(name, change, which):
    """Hidden states, log-probs, all weight gradients (the changed have advantage 0), gradients of the inputs."""
    model = packed_model(name)
    packs = [mixed_pack(), mixed_pack()]
    changed = change(packs[1], which)
    assert changed != set(range(len(packs[0])))
    sizes = [len(r.completion_ids) for r in packs[0]]
    is_other = torch.tensor([i not in changed for i, size in enumerate(sizes) for _ in range(size)])
    results = []
    for rollouts in packs:
        inputs: list[torch.Tensor] = []
        hook = model.get_input_embeddings().register_forward_hook(lambda m, a, out, inputs=inputs: inputs.append(out))
        rows = hidden(model, rollouts)
        loss = (rows[is_other] * torch.linspace(-1, 1, rows.shape[1])).square().sum()
        own = torch.autograd.grad(loss, inputs[0])[0][0]
        hook.remove()
        scores = [s for i, s in enumerate(scores_of(Policy(model), rollouts, 1000)) if i not in changed]
        for i in changed:
            rollouts[i].advantage = 0.0
        results.append((rows.detach(), own, scores, gradients(model, [rollouts])))
    (rows_a, own_a, scores_a, weights_a), (rows_b, own_b, scores_b, weights_b) = results
    assert torch.equal(rows_a[is_other], rows_b[is_other])
    first = [sum(sizes[:i]) for i in changed if change is change_completion]  # a shared prompt's own prediction
    assert (rows_a[~is_other] != rows_b[~is_other]).any(-1).sum() == (~is_other).sum() - len(first)
    assert torch.equal(own_a, own_b)
    num_changed = sum(sizes[i] for i in changed) - len(first) if change is not change_group else None
    if num_changed is not None:  # inputs that only the changed sequence has get no gradient from the others
        assert (own_a == 0).all(-1).sum() == num_changed
    assert scores_a == scores_b
    assert any(g.abs().max() > 0 for g in weights_a)
    assert all(torch.equal(a, b) for a, b in zip(weights_a, weights_b, strict=True))


def relative(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours.double() - reference).norm() / reference.norm()).item()


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_pack_is_as_exact_as_one_sequence_at_a_time(name, dtype):
    """err(pack, fp64) ≤ 2·err(alone, fp64) + constant; alone and fp64 by transformers' eager attention."""
    rollouts = mixed_pack()
    packed, alone = packed_model(name, dtype), random_model(FAMILIES[name], dtype)
    exact = random_model(FAMILIES[name], dtype).double()
    exact.set_attn_implementation("eager")
    alone.set_attn_implementation("eager")
    small = 1e-6 if dtype == torch.float32 else 2e-3
    with torch.no_grad():
        reference, plain = (torch.cat([hidden(m, [r]) for r in rollouts]) for m in (exact, alone))
        assert relative(hidden(packed, rollouts), reference) <= 2 * relative(plain, reference) + small
    references, plains = (gradients(m, [[r] for r in rollouts]) for m in (exact, alone))
    for ours, plain, reference in zip(gradients(packed, [rollouts]), plains, references, strict=True):
        if reference.norm() > 1e-6:
            assert relative(ours, reference) <= 2 * relative(plain, reference) + 5 * small


def test_positions_restart_with_every_sequence_and_go_on_behind_a_prompt():
    """GPT-2 adds a learned vector per position: the same completion of the same prompt must get the same vectors."""
    model, (first, other) = packed_model("gpt2"), rollouts_of([11, 5])
    group = group_of(4, [3, 3], 1)
    batch = build_micro_batch(batch_of([first, group[0], other, group[1]]), is_packed=True)
    assert batch.positions_T.tolist() == [*range(4), *range(5), *range(11), 4, 5, 4, 5]
    assert batch.layout.lengths == (4, 5, 11, 2, 2) and batch.layout.prefixes == (None, None, None, 0, 0)
    assert batch.places_N.tolist() == [*range(9, 20), 3, 20, 21, *range(4, 9), 3, 22, 23]
    own = hidden(model, [group[1]]).detach()
    rows = Policy(model).hidden_states(batch).detach()
    assert (rows[-3:] - own).abs().max() < 1e-5 * own.abs().max()
    object.__setattr__(batch, "positions_T", torch.arange(24))
    running = Policy(model).hidden_states(batch).detach()
    assert (running[-3:] - own).abs().max() > 1e-2 * own.abs().max()


def test_a_window_of_eight_sees_eight_tokens():
    """One layer: the token at t sees t − 7 … t of its own sequence, no more and no less, across a shared prompt too."""
    model = random_model(MistralConfig(**SHAPE | {"num_hidden_layers": 1}, sliding_window=8))
    assert pack(model, choose_attention("auto", CPU, torch.float32, model.config)).is_packed
    pair = rollouts_of([20, 20])
    before = hidden(model, pair)
    pair[1].prompt_ids = [pair[1].prompt_ids[0] + 1 if pair[1].prompt_ids[0] < 122 else 2]
    changed = (hidden(model, pair) != before).any(-1)
    assert changed.tolist() == [False] * 20 + [True] * 8 + [False] * 12
    group = pair + group_of(6, [9, 7], 3)
    before = hidden(model, group)
    for rollout in group[2:]:  # position 4: rows of positions 5 to 11 see it, those from 12 on do not
        rollout.prompt_ids[4] = 2 if rollout.prompt_ids[4] != 2 else 3
    changed = (hidden(model, group) != before).any(-1)
    assert changed.tolist() == [False] * 40 + [True] * 7 + [False] * 2 + [True] * 7


@every_family
def test_a_pack_of_one_and_one_token_sequences(name):
    model = packed_model(name)
    one, single, same = rollouts_of([13, 1, 1])
    same.prompt_ids = single.prompt_ids
    rows = hidden(model, [single, one, same])
    assert torch.equal(rows[0], rows[-1])
    assert (rows[1:14] - hidden(model, [one])).abs().max() < 1e-5 * rows.abs().max()
    assert (rows[:1] - hidden(model, [single])).abs().max() < 1e-5 * rows.abs().max()


class SdpaCost(TorchDispatchMode):
    """Sums (query length × key length) over all attention calls and rows."""

    def __init__(self):
        super().__init__()
        self.pairs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(func) and "backward" not in str(func):
            query, key = args[:2]
            self.pairs += query.shape[0] * query.shape[-2] * key.shape[-2]
        return func(*args, **(kwargs or {}))


def test_attention_costs_about_the_sum_of_squares():
    """Each sequence pays for itself and its prompt; a bucket's padding is a share of it, or too little to count."""
    model = packed_model("llama")
    singles = [300, 300, 180, 90, 40, 40, 8, 7, 3]
    group = group_of(120, [200, 190, 60], 0)
    exact = sum(length**2 for length in singles) + 120**2 + sum((n - 1) * (n - 1 + 120) for n in (200, 190, 60))
    with torch.no_grad(), SdpaCost() as cost:
        hidden(model, rollouts_of(singles) + group)
    layers = model.config.num_hidden_layers
    assert layers * exact < cost.pairs <= layers * (exact / (1 - PADDED_SHARE) + 2 * PADDED_SCORES)
    with torch.no_grad(), SdpaCost() as cost:
        hidden(model, rollouts_of([100] * 5 + [900] * 3))
    assert cost.pairs == layers * (5 * 100**2 + 3 * 900**2)


class ForgetfulModel(LlamaModel):
    def forward(self, input_ids=None, use_cache=None, **kwargs):
        return super().forward(input_ids, use_cache=use_cache)


class ForgetfulForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.model = ForgetfulModel(config)


def test_a_model_that_forgets_the_lengths_is_padded_and_named():
    """It follows the interface, but its packed forward sees the neighbours: only the comparison can tell."""
    torch.manual_seed(0)
    model = ForgetfulForCausalLM(LlamaConfig(**SHAPE)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    choice = pack(model, choose_attention("auto", CPU, torch.float32, model.config))
    assert not choice.is_packed and not is_packed(model) and model.config._attn_implementation == "sdpa"
    assert "ForgetfulForCausalLM has other hidden states in a pack than alone" in choice.reason


def leaking(boundary: int):
    """SDPA in which segment `boundary` sees all of its neighbour on the left, as if it continued that."""

    def attend(query, key, value, pattern):
        layout = pattern.layout
        output = _sdpa(query, key, value, pattern)
        if boundary >= len(layout.lengths):
            return output
        start, middle = (sum(layout.lengths[:i]) for i in (boundary - 1, boundary))
        end = middle + layout.lengths[boundary]
        seen = Pattern(Layout((end - start,), (None,)), pattern.scale, pattern.window, None)
        joined = _sdpa(query[start:end], key[start:end], value[start:end], seen)
        return torch.cat([output[:middle], joined[middle - start :], output[end:]])

    return attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "gemma2"])
@pytest.mark.parametrize("boundary", [1, 5, 6, 11])
def test_a_pack_that_leaks_at_one_boundary_is_refused(name, dtype, boundary, monkeypatch):
    """Segments 0 to 2 are shared prompts, 4 and 5 whole sequences, those from 6 on completions."""
    monkeypatch.setitem(_FORWARDS, "sdpa", _attention(leaking(boundary), is_eager=False))
    model = random_model(FAMILIES[name], dtype)
    choice = pack(model, choose_attention("auto", CPU, dtype, model.config))
    assert not choice.is_packed and "has other hidden states in a pack than alone" in choice.reason
    monkeypatch.undo()
    assert pack(model, choose_attention("auto", CPU, dtype, model.config)).is_packed


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            BloomConfig(vocab_size=123, hidden_size=32, n_layer=2, n_head=2),
            "BloomForCausalLM does not follow transformers' attention interface",
        ),
        (GptOssConfig(**SHAPE, head_dim=8, num_local_experts=2, num_experts_per_tok=1), "GptOssForCausalLM cannot be"),
        (Qwen3NextConfig(**SHAPE, head_dim=8), "qwen3_next has layers of type linear_attention"),
    ],
    ids=["bloom", "gpt-oss", "qwen3-next"],
)
def test_models_that_cannot_be_packed_run_padded_and_say_why(config, reason):
    implementation = "eager" if config.model_type == "gpt_oss" else None
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).float().eval()
    choice = choose_attention("auto", CPU, torch.float32, config)
    choice = pack(model, choice) if choice.is_packed else choice
    assert not choice.is_packed and choice.reason.startswith(reason)
    policy = Policy(model)
    assert not policy.is_packed
    rollouts = rollouts_of([9, 14, 5])
    for rollout, (logprobs, _) in zip(rollouts, scores_of(policy, rollouts, 100), strict=True):
        with torch.no_grad():
            ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
            table = model(ids, use_cache=False).logits[0].log_softmax(-1)
        own = table[:-1].gather(1, torch.tensor(rollout.completion_ids)[:, None]).squeeze(1)
        assert logprobs == pytest.approx(own.tolist(), abs=1e-4)


@every_family
def test_sampling_from_the_packed_module_is_what_transformers_samples(name):
    """With left padding, a cache and a prefilled prompt; Gemma-2 against eager, which alone caps scores."""
    sampled = []
    for model in (packed_model(name), random_model(FAMILIES[name])):
        if not is_packed(model):
            model.set_attn_implementation("eager" if name == "gemma2" else "sdpa")
        sampler = EmbeddedSampler(model, stop_token_ids=[1], pad_token_id=0, batch_size=8)
        prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21], [30, 31, 32, 33]]
        sampled.append(drawn(sampler, prompts, SamplingSettings(2, 12), [1, 2, 3]))
    for ours, plain in zip(*sampled, strict=True):
        assert ours.completion_ids == plain.completion_ids
        assert ours.sampler_logprobs == pytest.approx(plain.sampler_logprobs, abs=1e-4)


def test_the_choice_says_what_runs_and_refuses_what_cannot():
    llama, gemma2 = FAMILIES["llama"], FAMILIES["gemma2"]
    assert str(choose_attention("auto", CPU, torch.float32, llama)).startswith("sdpa, packed")
    assert choose_attention("auto", CPU, torch.float32, gemma2).path == "eager"
    flex = choose_attention("flex_attention", CPU, torch.float32, llama)
    assert (flex.path, flex.is_packed) == ("flex_attention", False)
    with pytest.raises(ValueError, match="'sdpa' cannot run: it cannot cap attention scores, gemma2 caps them at 2"):
        choose_attention("sdpa", CPU, torch.float32, gemma2)
    with pytest.raises(ValueError, match="'varlen' cannot run: it needs a CUDA device"):
        choose_attention("varlen", CPU, torch.bfloat16, llama)
    cuda = torch.device("cuda")
    assert choose_attention("auto", cuda, torch.float32, llama).path == "sdpa"
    assert "needs bfloat16 weights" in choose_attention("auto", cuda, torch.float32, llama).reason


@pytest.mark.gpu
@pytest.mark.parametrize("path", PACKED_PATHS[:3])
@pytest.mark.parametrize("name", ["qwen3", "mistral window", "gemma2"])
def test_flash_paths_are_as_exact_as_sdpa(name, path):
    """On CUDA in bf16, heads of 16, against eager in fp32 on the same weights."""
    config = type(FAMILIES[name])(**FAMILIES[name].to_dict() | {"head_dim": 16})
    device = torch.device("cuda")
    try:
        choose_attention(path, device, torch.bfloat16, config)
    except ValueError as error:
        pytest.skip(str(error))
    flash, plain = (random_model(config, torch.bfloat16).to(device) for _ in range(2))
    exact = random_model(config, torch.bfloat16).float().to(device)
    for model, chosen in ((flash, path), (plain, "eager"), (exact, "eager")):
        assert use_packed_attention(model, chosen)
    rollouts = mixed_pack()
    batch = build_micro_batch(batch_of(rollouts), np.full(len(rollouts), 0.1), is_packed=True).to(device)
    rows = [Policy(m).hidden_states(batch).detach() for m in (exact, plain, flash)]
    assert relative(rows[2], rows[0].double()) <= 2 * relative(rows[1], rows[0].double()) + 2e-3
    losses = [Policy(m, TokenLoss())(batch).loss for m in (exact, plain, flash)]
    sums = [
        torch.autograd.grad(loss, list(m.parameters())) for loss, m in zip(losses, (exact, plain, flash), strict=True)
    ]
    for reference, own, ours in zip(*sums, strict=True):
        assert relative(ours, reference.double()) <= 2 * relative(own, reference.double()) + 1e-2
