"""Signals against credits worked out by hand, on real tiny models."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of, rows_of

from fastrl.config.files import load_config
from fastrl.config.schema import ModelConfig, TaskConfig, TrainConfig
from fastrl.config.settings import with_settings
from fastrl.kernels import TokenLoss
from fastrl.learning.objectives import Grpo, Nsr, objective_credits
from fastrl.learning.problem import filled, hinted, solution_text
from fastrl.learning.signals import Distillation, SelfDistillation, correct_siblings
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.records.jsonl import read_jsonl
from fastrl.rollouts import Rollouts
from fastrl.run.training import train
from fastrl.sample_and_judge import Arena
from fastrl.sampling.protocol import SamplingSettings
from fastrl.tasks import Problem, load_task
from fastrl.tasks.correctness import Correctness
from fastrl.trainer import StepTools

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def model(countdown_folder):
    return load_model(Pretrained(ModelConfig(path=str(countdown_folder))))


@pytest.fixture
def tools(countdown_folder, model):
    """Real tools, with a teacher that is the policy after a little noise."""
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.02)
    tokenizer = Pretrained(ModelConfig(path=str(countdown_folder))).tokenizer
    task = load_task(TaskConfig(name="countdown"), splits=())
    models = dict.fromkeys(("teacher", "start"), Policy(teacher))
    arena = Arena(task, tokenizer, None, None, Policy(model), Correctness(), models)
    return StepTools(arena, SamplingSettings(2, 16), 512, None, 0, 1)


def logprobs(model, prompt: list[int], completion: list[int]) -> list[float]:
    """Of a completion, from the bare model."""
    with torch.no_grad():
        table = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return table.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist()


def judged(rows: list[Rollout], rewards: list[float]) -> Rollouts:
    return replace(batch_of(rows), rewards_R=np.array(rewards), penalties_R=np.zeros(len(rows)))


def test_an_objectives_credit_is_the_advantage_for_every_token():
    batch = judged([Rollout([1], [2] * n, group=g) for n, g in ((3, 0), (1, 0), (2, 1), (2, 1))], [1.0, 0.0, 0.0, 0.0])
    assert objective_credits(Nsr(), batch, batch.rewards_R >= 1).tolist() == [0, 0, 0, -1, -1, -1, -1, -1]
    half = 0.5**0.5
    assert objective_credits(Grpo(), batch, batch.rewards_R >= 1) == pytest.approx(
        [half] * 3 + [-half] + [0] * 4, abs=1e-5
    )


def test_distillation_credits_what_the_teacher_thinks_more_of(tools, model):
    rows = [Rollout([4, 5, 6], [7, 8, 1]), Rollout([9, 4], [5, 1], group=1)]
    credits_N = Distillation(teacher="there", weight=0.5)(batch_of(rows), [], tools)
    teacher = tools.arena.models["teacher"].model
    pairs = [
        (logprobs(teacher, r.prompt_ids, r.completion_ids), logprobs(model, r.prompt_ids, r.completion_ids))
        for r in rows
    ]
    expected = [0.5 * (t - own) for pair in pairs for t, own in zip(*pair, strict=True)]
    assert credits_N == pytest.approx(expected, abs=1e-5) and max(map(abs, expected)) > 1e-2


def test_distillation_is_the_gradient_of_the_reverse_kl(tools, model):
    """Over all tokens that can come next, weighed by their probability: exactly ∇KL(π ‖ teacher)."""
    prompt, vocab = [4, 5, 6], model.get_output_embeddings().weight.shape[0]
    batch = batch_of([Rollout(prompt, [token]) for token in range(vocab)])
    batch = replace(batch, credits_N=Distillation(teacher="there")(batch, [], tools).astype(np.float32))
    policy, teacher = Policy(model, TokenLoss()), tools.arena.models["teacher"].model
    ids = torch.tensor([prompt])
    own = model(ids).logits[0, -1].log_softmax(-1)
    with torch.no_grad():
        theirs = teacher(ids).logits[0, -1].log_softmax(-1)
    weights = list(model.parameters())
    expected = torch.autograd.grad((own.exp() * (own - theirs)).sum(), weights)
    loss = policy(policy.micro_batch(batch, own.detach().exp().numpy())).loss
    for ours, reference in zip(torch.autograd.grad(loss, weights), expected, strict=True):
        assert (ours - reference).norm() <= 1e-4 * reference.norm() + 1e-7


def test_siblings_are_the_first_other_correct_one():
    groups, correct = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 0, 0, 1, 0], dtype=bool)
    assert correct_siblings(groups, correct).tolist() == [1, 2, 1, -1, -1, -1, 5]


PROBLEMS = [Problem("a", "1 2 3 4=10:", {}), Problem("b", "5 5 5 5=20:", {})]


def sibling_batch(tokenizer) -> Rollouts:
    """Group 0: wrong, correct, wrong. Group 1: nothing correct."""
    texts = [("1*2", 0), ("1+2+3+4", 0), ("4-1", 0), ("5+5", 1), ("5*5", 1), ("5", 1)]
    rows = [
        Rollout(tokenizer(PROBLEMS[g].prompt).input_ids, [*tokenizer(t).input_ids, tokenizer.eos_token_id], group=g)
        for t, g in texts
    ]
    return judged(rows, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("teacher", ["start", "policy"])
def test_self_distillation_scores_behind_a_hint(tools, model, teacher):
    tokenizer = tools.arena.tokenizer
    batch = sibling_batch(tokenizer)
    signal = SelfDistillation(hint="({solution})=", teacher=teacher)
    assert signal.models() == ({"start": ""} if teacher == "start" else {})
    credits_N = signal(batch, PROBLEMS, tools)
    reader = model if teacher == "policy" else tools.arena.models["start"].model
    expected = []
    for row, is_told in zip(rows_of(batch), [True, False, True, False, False, False], strict=True):
        own = logprobs(model, row.prompt_ids, row.completion_ids)
        hinted = tokenizer("1 2 3 4=10:(1+2+3+4)=").input_ids
        seen = logprobs(reader, hinted, row.completion_ids) if is_told else own
        expected += [b - a for a, b in zip(own, seen, strict=True)]
    assert credits_N == pytest.approx(expected, abs=1e-5) and np.abs(credits_N).max() > 1e-2


def test_a_hint_that_does_not_fit_gives_no_credit_and_is_said(tools):
    batch = sibling_batch(tools.arena.tokenizer)
    short = replace(tools, max_sequence_tokens=25)  # prompt 11, hint 10, completions of 4, 8 and 4 tokens
    with pytest.warns(UserWarning, match=r"2 of 2 hinted prompts .* context of 24 tokens"):
        credits_N = SelfDistillation(hint="({solution})=")(batch, PROBLEMS, replace(short, max_sequence_tokens=24))
    assert not credits_N.any()
    assert SelfDistillation(hint="({solution})=")(batch, PROBLEMS, short).any()


def test_a_hint_goes_into_the_last_message_without_the_siblings_thoughts():
    chat = Problem("c", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], {})
    told = hinted(chat, filled(" Hint: {solution}", solution="4"))
    assert told.prompt == [chat.prompt[0], {"role": "user", "content": "2+2? Hint: 4"}]
    assert chat.prompt[1]["content"] == "2+2?"
    assert solution_text("is it 5?</think>\n4 ") == "4" and filled("{a}{b}", a="{b}", b="1") == "{b}1"


@pytest.mark.parametrize(
    ("signal", "said"), [(Distillation(), "teacher is missing"), (SelfDistillation("x"), "hold {solution}")]
)
def test_a_signal_that_cannot_work_says_so(signal, said):
    with pytest.raises(ValueError, match=said):
        signal.models()


def test_evaluative_and_directive_credit_add_up(tmp_path):
    """configs/sdpo.toml for a step: −1 for a wrong rollout, plus what the hint adds, by the bare model."""
    settings = {
        "model.path": str(ROOT / "models" / "countdown"),
        "batch.prompts_per_step": 3,
        "evaluation.at_end": False,
        "run.folder": str(tmp_path / "run"),
        "run.num_steps": 1,
        "run.sinks": (),
        "task.num_train": 20,
    }
    config = with_settings(load_config(TrainConfig, ROOT / "configs" / "sdpo.toml"), settings)
    rows = read_jsonl(train(config) / "rollouts" / "step-000001.jsonl.gz")
    source = Pretrained(config.model)
    model, ids = load_model(source), lambda text: source.tokenizer(text).input_ids
    num_told = 0
    for row in rows:
        evaluative = 0.0 if row["reward"] == 1 else -1.0
        solutions = {r["completion"] for r in rows if r["group"] == row["group"] and r["reward"] == 1}
        if row["advantage"] is not None:  # one credit for all of its tokens: nothing to point at
            assert row["advantage"] == evaluative and solutions <= {row["completion"]}
            continue
        told = [logprobs(model, ids(f"{row['prompt']}{s}=+:"), row["completion_ids"]) for s in solutions]
        own = logprobs(model, ids(row["prompt"]), row["completion_ids"])
        expected = [[evaluative + b - a for a, b in zip(own, hinted, strict=True)] for hinted in told]
        assert any(row["credits"] == pytest.approx(one, abs=1e-4) for one in expected)
        num_told += 1
    assert num_told and any(row["reward"] == 1 for row in rows) and len(rows) == 24
