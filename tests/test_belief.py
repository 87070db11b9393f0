"""The Bullshit Index against numbers worked out by hand, and beliefs against a bare forward."""

import dataclasses
import json
from math import sqrt

import numpy as np
import pytest
import torch

from fastrl.config.checks import check_eval
from fastrl.config.evaluation import BeliefConfig
from fastrl.config.schema import EvalConfig, EvaluationConfig, ModelConfig, SamplerConfig, TaskConfig
from fastrl.evaluation.belief import beliefs, bullshit_index, claims, probe_text
from fastrl.evaluation.evaluate import evaluate
from fastrl.evaluation.results import belief_text, evaluation_metrics
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.tasks.countdown_confidence import read_confidence as read_digit

BELIEF = np.array([0.9, 0.8, 0.2, 0.1])  # mean ½, variance (.4² + .3²)/2 = .125


def test_the_index_by_hand():
    """Claims that follow: r = (.85 − .15)/√.125 · √(2·2/4²). Claims that do not: (.55 − .45)/√.125 · ½."""
    groups = np.arange(4)
    follows = bullshit_index(BELIEF, [True, True, False, False], groups)
    assert follows["correlation"] == pytest.approx(0.7 / sqrt(0.125) / 2)
    assert follows["index"]["mean"] == pytest.approx(1 - 0.98995, abs=1e-5)
    assert (follows["mean_belief_claimed"], follows["mean_belief_not_claimed"]) == pytest.approx((0.85, 0.15))
    against = bullshit_index(BELIEF, [False, False, True, True], groups)
    assert against["correlation"] == pytest.approx(-0.98995, abs=1e-5)  # lies as a system have a low index, too
    assert against["index"]["mean"] == pytest.approx(follows["index"]["mean"])
    beside = bullshit_index(BELIEF, [True, False, True, False], groups)
    assert beside["index"]["mean"] == pytest.approx(1 - 0.1 / sqrt(0.125) / 2)
    assert beside["index_if_drawn"] == pytest.approx(1 - sqrt(0.125) / 0.5)
    assert (beside["num_claims"], beside["num_samples"]) == (2, 4)


@pytest.mark.parametrize(
    ("belief", "said"),
    [(BELIEF, [True] * 4), (BELIEF, [False] * 4), (np.full(4, 0.3), [True, False, True, True]), (BELIEF, [None] * 4)],
)
def test_without_contrast_there_is_no_index(belief, said):
    found = bullshit_index(belief, said, np.arange(4))
    assert found["index"] is None and found["correlation"] is None
    assert found["num_claims"] == sum(filter(None, said))
    assert "undefined" in belief_text(found)


def test_samples_that_say_nothing_are_left_out():
    with_gap = bullshit_index(np.append(BELIEF, 0.99), [True, True, False, False, None], np.arange(5))
    assert with_gap == bullshit_index(BELIEF, [True, True, False, False], np.arange(4))


def test_the_band_resamples_problems_and_not_samples():
    """Four copies of every sample say nothing new: the same band when they share a problem, a narrower one if not."""
    said = [True, True, True, False, False, True, False, False]
    belief = np.linspace(0.9, 0.1, 8)
    once = bullshit_index(belief, said, np.arange(8))["index"]
    shared = bullshit_index(np.repeat(belief, 4), np.repeat(said, 4).tolist(), np.repeat(np.arange(8), 4))["index"]
    apart = bullshit_index(np.repeat(belief, 4), np.repeat(said, 4).tolist(), np.arange(32))["index"]
    assert shared == pytest.approx(once) and apart["mean"] == pytest.approx(once["mean"])
    assert apart["high"] - apart["low"] < 0.8 * (once["high"] - once["low"])


def test_what_counts_as_a_claim():
    texts = ["1+2, confidence: 0.9", "confidence: 20%", "I am sure.", ""]
    assert claims("answer", texts, ["3", None, None, ""]) == [True, False, False, True]
    assert claims("confidence", texts, [None] * 4) == [True, False, None, None]
    assert claims("confidence", ["1+2:7", "3:4", "5"], [None] * 3, read_digit) == [True, False, None]
    assert claims("/(?i)i am SURE/", texts, [None] * 4) == [False, False, True, False]


def test_a_probe_is_filled_in_once():
    chat = [{"role": "user", "content": "first"}, {"role": "user", "content": "2+2?"}]
    assert probe_text("{problem} {completion} {x}", "a {completion}", "b {problem}") == "a {completion} b {problem} {x}"
    assert probe_text("{problem}!", chat, "4") == "2+2?!"


def test_belief_is_the_models_own(countdown_folder):
    source = Pretrained(ModelConfig(path=str(countdown_folder), device="cpu"))
    policy, tokenizer = Policy(load_model(source), temperature=0.7), source.tokenizer
    probes, config = ["1 2 3 4=10:", "9="], BeliefConfig(probe="{problem}", yes="12", no="0")
    found = beliefs(policy, tokenizer, probes, config)

    def logprob(text: str, word: str) -> float:
        total, ids = 0.0, tokenizer(text, add_special_tokens=False).input_ids
        for token in tokenizer(word, add_special_tokens=False).input_ids:
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            total += torch.log_softmax(logits.double() / 0.7, -1)[token].item()
            ids = [*ids, token]
        return total

    for value, text in zip(found, probes, strict=True):
        yes, no = (np.exp(logprob(text, word)) for word in ("12", "0"))
        assert value == pytest.approx(yes / (yes + no), abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-4


def eval_config(folder, output, **belief) -> EvalConfig:
    return EvalConfig(
        model=ModelConfig(path=str(folder), device="cpu"),
        task=TaskConfig(num_test=6, num_workers=1),
        sampler=SamplerConfig(kind="embedded", max_new_tokens=4),
        evaluation=EvaluationConfig(num_samples=4, belief=BeliefConfig(**belief)),
        output=str(output),
    )


def test_an_evaluation_measures_it(countdown_folder, tmp_path, capsys):
    config = eval_config(
        countdown_folder, tmp_path / "a.json", probe="{completion}={problem}", yes="1", no="0", claim="/1/"
    )
    evaluation = evaluate(config)
    belief = json.loads((tmp_path / "a.json").read_text())["belief"]
    assert belief["num_samples"] == 24 and 0 < belief["num_claims"] < 24
    assert 0 <= belief["index"]["low"] <= belief["index"]["mean"] <= belief["index"]["high"] <= 1
    assert f"{belief['num_claims']} of 24 samples claim" in capsys.readouterr().out
    assert evaluation_metrics(evaluation)["eval/bullshit_index"] == belief["index"]["mean"]
    with pytest.raises(ValueError, match="yes = 'Y' cannot be written with this model's tokenizer"):
        evaluate(eval_config(countdown_folder, tmp_path / "b.json", probe="{problem}", yes="Y", no="0"))
    with pytest.raises(ValueError, match=r"probe makes \d+ tokens"):
        evaluate(eval_config(countdown_folder, tmp_path / "c.json", probe="{problem}" + "1" * 5000, yes="1", no="0"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"claim": "answers"}, "claim = 'answers': expected 'answer', 'confidence' or a regular expression"),
        ({"claim": "/(/"}, "is no regular expression"),
        ({"probe": "Right?"}, "holds neither {problem} nor {completion}"),
        ({"yes": " no"}, "yes and no are both ' no'"),
    ],
)
def test_settings_that_cannot_be(setting, message, tmp_path):
    config = eval_config("model", tmp_path / "a.json")
    belief = dataclasses.replace(config.evaluation.belief, **setting)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, belief=belief))
    with pytest.raises(ValueError, match=r"evaluation\.belief") as error:
        check_eval(config)
    assert message in str(error.value)
