"""Second tries: what is told, what takes whose place, how it is shaped; on texts that a scripted sampler hands in."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rollout_cases import Rollout, batch_of
from test_training import assert_bitwise_equal, config_of, weights

from fastrl.config.checks import check_train
from fastrl.config.files import load_config
from fastrl.config.schema import ModelConfig, TaskConfig, TrainConfig
from fastrl.config.settings import with_settings
from fastrl.kernels import TokenLoss
from fastrl.kernels.surrogates import Reinforce
from fastrl.learning.refiners import Critique, NoRefiner, Redraw, best_of_groups, rescues, shaping, with_firsts_replaced
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.records.jsonl import read_jsonl
from fastrl.rollouts import Rollouts
from fastrl.run.preflight import check_refiner
from fastrl.run.training import train
from fastrl.sample_and_judge import Arena
from fastrl.sampling.protocol import SamplingSettings
from fastrl.tasks import Problem, countdown_told, load_task
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verify import make_pool
from fastrl.trainer import StepTools

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
TOY = Critique(
    right=countdown_told.RIGHT,
    wrong=countdown_told.WRONG,
    answer=countdown_told.ANSWER,
    question=countdown_told.QUESTION,
    hint=countdown_told.HINT,
)
PROBLEMS = [
    Problem("a", "1 2 3 4=10:", {"numbers": [1, 2, 3, 4], "target": 10}),
    Problem("b", "5 5 5 5=20:", {"numbers": [5, 5, 5, 5], "target": 20}),
    Problem("c", "1 1 1 1=4:", {"numbers": [1, 1, 1, 1], "target": 4}),
]
# Group a: wrong numbers, right. Group b: wrong value, no expression. Group c: no verdict, wrong value.
FIRST = ["1*2", "1+2+3+4", "5*5-5*5", "5+", "1+1+1+1", "1*1*1*1"]
AGAIN = ["4+3+2+1", "1+2+3+4", "5+5+5+5", "5*5-5+5", "1+1"]  # nothing for the one without a verdict


@dataclass
class Scripted:
    """Hands in these texts, whatever it is asked; keeps what it was asked."""

    tokenizer: object
    texts: list[str]
    asked: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def generate(self, prompts, settings, seeds) -> Iterator[Rollouts]:
        assert settings.num_samples == 1
        self.asked += self.tokenizer.batch_decode(prompts)
        self.seeds += seeds
        texts, self.texts = self.texts[: len(prompts)], self.texts[len(prompts) :]
        ids = [[*self.tokenizer(text).input_ids, self.tokenizer.eos_token_id] for text in texts]
        yield Rollouts.of(prompts, ids, groups=range(len(prompts)), sampler_logprobs=[[-9.0] * len(row) for row in ids])


@pytest.fixture(scope="module")
def parts(countdown_folder):
    """Tokenizer, policy and verifiers."""
    source, config = Pretrained(ModelConfig(path=str(countdown_folder))), TaskConfig(name="countdown", num_workers=1)
    task = load_task(config, splits=())
    with make_pool(task.reward, config) as pool:
        yield source.tokenizer, task, pool, Policy(load_model(source))


@pytest.fixture
def tools(parts) -> StepTools:
    tokenizer, task, pool, policy = parts
    arena = Arena(task, tokenizer, Scripted(tokenizer, list(AGAIN)), pool, policy, Correctness())
    return StepTools(arena, SamplingSettings(2, 16), 512, None, 7, 1, max_drawn_tokens=60)


@pytest.fixture
def batch(tools) -> Rollouts:
    tokenizer = tools.arena.tokenizer
    rows = [
        Rollout(
            tokenizer(PROBLEMS[i // 2].prompt).input_ids,
            [*tokenizer(text).input_ids, tokenizer.eos_token_id],
            group=i // 2,
            sampler_logprobs=[-1.0] * (len(text) + 1),
        )
        for i, text in enumerate(FIRST)
    ]
    judged = tools.judge(PROBLEMS, replace(batch_of(rows), credits_N=None))
    rewards_R = np.where(np.arange(6) == 4, np.nan, judged.rewards_R)
    return replace(judged, rewards_R=rewards_R, texts_R=None)


def texts(tools: StepTools, rollouts: Rollouts) -> list[str]:
    return tools.texts(rollouts)


def test_shaping_is_largest_at_gamma():
    assert shaping(np.log([0.1, 0.9, 0.5]), 0.1) == pytest.approx([0.25, 0.09, 0.05 / 0.36])


def test_the_shaped_gradient_is_that_of_the_authors_formula(parts):
    """−A·p/(p + γ) through autograd, token by token, against the policy loss with the factor."""
    *_, policy = parts
    policy = Policy(policy.model, TokenLoss(Reinforce()))
    prompt, completion, advantage, gamma = [4, 5, 6], [7, 8, 3, 1], 0.75, 0.1
    weights = list(policy.model.parameters())
    logprobs = policy.model(torch.tensor([prompt + completion])).logits[0, 2:-1].log_softmax(-1)
    p = logprobs.gather(1, torch.tensor(completion)[:, None])[:, 0].exp()
    expected = torch.autograd.grad((-advantage * p / (p + gamma)).sum(), weights)
    batch = batch_of([Rollout(prompt, completion, advantage)])
    batch = replace(batch, importance_weights_N=shaping(p.detach().log().numpy(), gamma))
    loss = policy(policy.micro_batch(batch, np.ones(1))).loss
    for ours, reference in zip(torch.autograd.grad(loss, weights), expected, strict=True):
        assert (ours - reference).norm() <= 1e-4 * reference.norm() + 1e-7
    assert max(reference.norm() for reference in expected) > 1e-3


def test_the_best_of_a_group_is_its_first_correct_one_or_else_its_highest():
    groups, nan = [0, 0, 0, 1, 1, 1, 2, 3, 3], np.nan
    rewards = [0.2, 1.0, 2.0, 0.3, 0.5, 0.5, nan, nan, -1.0]
    rollouts = Rollouts.of([[1]] * 9, [[2]] * 9, groups=groups, rewards_R=np.array(rewards))
    assert best_of_groups(rollouts, rollouts.rewards_R >= 1).tolist() == [1, 4, 8]


def test_only_the_first_of_a_group_is_replaced():
    batch = Rollouts.of([[1]] * 4, [[2, 2]] * 4, groups=[0, 0, 1, 1])
    new = Rollouts.of([[1]], [[3]], groups=[1], importance_weights_N=np.array([0.25]))
    refined = with_firsts_replaced(batch, new)
    assert [refined.completion(i).tolist() for i in range(4)] == [[2, 2], [2, 2], [3], [2, 2]]
    assert refined.groups_R.tolist() == [0, 0, 1, 1]
    assert refined.importance_weights_N.tolist() == [1, 1, 1, 1, 0.25, 1, 1]


def test_rescued_groups_had_nothing_correct():
    groups, before, after = np.repeat(np.arange(4), 2), np.zeros(8), np.zeros(8)
    before[0] = after[0] = after[2] = 1
    assert rescues(groups, before, after) == {
        "refine/all_wrong_groups": 3,
        "refine/rescued_share": pytest.approx(1 / 3),
    }


def test_a_second_try_takes_the_place_of_the_first_rollout_behind_the_problems_own_prompt(tools, batch):
    refined, metrics = TOY(batch, PROBLEMS, tools)
    assert tools.arena.sampler.asked == [
        "1 2 3 4=10:1*2=-:",
        "1 2 3 4=10:1+2+3+4=+:",
        "5 5 5 5=20:5*5-5*5=-:",
        "5 5 5 5=20:5+=-:",
        "1 1 1 1=4:1*1*1*1=-:",
    ]
    assert len(set(tools.arena.sampler.seeds)) == 5
    assert texts(tools, refined) == ["4+3+2+1", "1+2+3+4", "5+5+5+5", "5+", "1+1", "1*1*1*1"]
    assert refined.rewards_R.tolist() == [1, 1, 1, 0, 0, 0] and refined.groups_R.tolist() == [0, 0, 1, 1, 2, 2]
    prompts = tools.arena.tokenizer.batch_decode([refined.prompt(i) for i in range(6)])
    assert prompts == [PROBLEMS[i // 2].prompt for i in range(6)]
    own_N = tools.score(refined)
    for i in range(6):
        found, own = (refined.of_rollout(i, column) for column in (refined.sampler_logprobs_N, own_N))
        weights_n = refined.of_rollout(i, refined.importance_weights_N)
        if i % 2:
            assert (found == -1).all() and (weights_n == 1).all()
        else:
            assert found == pytest.approx(own, abs=1e-5)
            assert weights_n == pytest.approx(0.1 * np.exp(own) / (np.exp(own) + 0.1) ** 2, rel=1e-4)
    assert metrics.pop("refine/logprob") == pytest.approx(
        np.mean(np.concatenate([refined.of_rollout(i, own_N) for i in (0, 2, 4)])), abs=1e-4
    )
    assert metrics == {
        "refine/tried_share": 5 / 6,
        "refine/own_correct_share": 1 / 6,
        "refine/wrong_corrected_share": 2 / 4,
        "refine/correct_kept_share": 1.0,
        "refine/all_wrong_groups": 2,
        "refine/rescued_share": 0.5,
    }


SAID = {
    "verdict": ["-", "+", "-", "-", "-"],
    "rules": ["(+3+4)", "10", "0", "()", "1"],
    "answer": ["- 1*2*3+4", "+ 1*2*3+4", "- 5+5+5+5", "- 5+5+5+5", "- 1+1+1+1"],
    "model": ["7", "8", "9", "(+1)", "0"],
}


@pytest.mark.parametrize("critic", SAID)
def test_critics_say_so_much(tools, batch, critic):
    sampler = tools.arena.sampler
    sampler.texts = (SAID["model"] if critic == "model" else []) + AGAIN
    replace(TOY, critic=critic)(batch, PROBLEMS, tools)
    tried = [(PROBLEMS[i // 2].prompt, FIRST[i]) for i in (0, 1, 2, 3, 5)]
    asked = [f"{prompt}{text}=" for prompt, text in tried] if critic == "model" else []
    told = [f"{prompt}{text}={said}:" for (prompt, text), said in zip(tried, SAID[critic], strict=True)]
    assert sampler.asked == asked + told
    assert len(set(sampler.seeds)) == len(sampler.seeds)


def test_what_does_not_fit_is_not_tried_again_and_is_said(tools, batch):
    short = replace(tools, max_drawn_tokens=16 + 17)  # the prompts have 17, 21, 21, 16 and 19 tokens
    tools.arena.sampler.texts = ["4+3+2+1", "5+5+5+5"]
    with pytest.warns(UserWarning, match=r"3 of 5 prompts for a second try .* exceed 17 tokens"):
        refined, metrics = TOY(batch, PROBLEMS, short)
    assert texts(tools, refined) == ["4+3+2+1", "1+2+3+4", "5+5+5+5", "5+", "1+1+1+1", "1*1*1*1"]
    assert metrics["refine/tried_share"] == pytest.approx(1 / 3)
    none = replace(tools, max_drawn_tokens=16)
    with pytest.warns(UserWarning, match="5 of 5"):
        refined, metrics = TOY(batch, PROBLEMS, none)
    assert texts(tools, refined) == FIRST and (refined.importance_weights_N == 1).all()


def test_a_control_is_told_nothing(tools, batch):
    """Behind the problem's own prompt; all else is as with a critique."""
    refined, metrics = Redraw(gamma=0.2)(batch, PROBLEMS, tools)
    assert tools.arena.sampler.asked == [PROBLEMS[i // 2].prompt for i in (0, 1, 2, 3, 5)]
    assert texts(tools, refined) == ["4+3+2+1", "1+2+3+4", "5+5+5+5", "5+", "1+1", "1*1*1*1"]
    own_n = refined.of_rollout(0, tools.score(refined))
    assert refined.of_rollout(0, refined.importance_weights_N) == pytest.approx(shaping(own_n, 0.2), rel=1e-4)
    assert metrics["refine/rescued_share"] == 0.5


def test_no_refiner_hands_the_batch_on(tools, batch):
    refined, metrics = NoRefiner()(batch, PROBLEMS, tools)
    assert refined is batch and metrics == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hint": "{completion}"}, "critique.hint = '{completion}' must hold {critique}"),
        ({"question": "?"}, "critique.question"),
        ({"answer": "yes"}, "critique.answer"),
        ({"model": "there"}, 'writes critiques for critic = "model" only'),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ValueError, match=said.replace("{", "\\{").replace("=", ".")):
        Critique(**settings).models()


def told_run(folder, model, critic: str, **run) -> TrainConfig:
    """Three groups of four on two updates, from the model of the demo."""
    words = {
        f"algorithm.critique.{name}": getattr(TOY, name) for name in ("right", "wrong", "answer", "question", "hint")
    }
    settings = {"algorithm.refiner": "critique", "algorithm.critique.critic": critic, "algorithm.objective": "dr-grpo"}
    config = with_settings(config_of(folder, model, **run), words | settings)
    return replace(config, evaluation=replace(config.evaluation, every=0, at_end=False))


def test_tasks_that_cannot_help_are_refused_before_the_model_is_loaded(tmp_path, monkeypatch, countdown_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def one(prompt, completion, **row):\n    return 0.0\n"
        "def all_at_once(prompt, completions, **row):\n    return [0.0] * len(completions)\n"
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1="}) + "\n")
    (tmp_path / "own.py").open("a").write(
        "class Talk:\n"
        "    def reset(self, prompt, **row): pass\n"
        "    def step(self, text): return '', True\n"
        "    def score(self): return 0.0\n"
    )
    cases = {
        ("Talk", "verdict"): "judges conversations",
        ("one", "rules"): "no rules",
        ("one", "answer"): "knows no answer",
        ("all_at_once", "verdict"): "whole groups",
    }
    for (function, critic), said in cases.items():
        task = TaskConfig(f"own:{function}", str(tmp_path), train="rows.jsonl", num_workers=1)
        config = replace(told_run("run", countdown_folder, critic), task=task)
        with pytest.raises(ValueError, match=said):
            check_refiner(config, load_task(task))
    fine = replace(config, algorithm=replace(config.algorithm, refiner="none"))
    assert check_refiner(fine, load_task(task)) == 0


def test_a_run_with_second_tries_resumes_bitwise(tmp_path, countdown_folder):
    """A model beside the policy writes the critiques, the policy tries again; stopped after two steps of four."""
    config = told_run(tmp_path / "whole", countdown_folder, "model")
    config = with_settings(config, {"algorithm.critique.model": str(countdown_folder)})
    train(config)
    halves = replace(config, run=replace(config.run, folder=str(tmp_path / "halves")))
    train(replace(halves, run=replace(halves.run, num_steps=2)))
    train(halves, resume=True)
    assert_bitwise_equal(weights(tmp_path / "whole"), weights(tmp_path / "halves"))
    rows, again = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "halves"))
    assert [r["refine/logprob"] for r in rows] == [r["refine/logprob"] for r in again]
    assert all(row["refine/tried_share"] == 1 and row["rollouts/num"] == 12 for row in rows)
    assert len({row["refine/logprob"] for row in rows}) == 4
    assert all(row["mismatch/max_abs"] < 1e-4 for row in rows)


def test_the_configs_speak_the_language_of_the_warm_start():
    critique, sdpo = (check_train(load_config(TrainConfig, CONFIGS / f"{n}.toml")) for n in ("critique-grpo", "sdpo"))
    assert critique.algorithm.critique == TOY
    right = TOY.hint.replace("{completion}", "{solution}").replace("{critique}", TOY.right)
    assert sdpo.algorithm.self_distillation.hint == right
