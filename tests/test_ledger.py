"""The ledger on models so small that every completion can be listed: nothing is lost, nothing is counted twice."""

import dataclasses
import itertools
import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from rollout_cases import credited, rows_of
from safetensors.torch import load_file

from fastrl.cli import main
from fastrl.config.schema import (
    AlgorithmConfig,
    BatchConfig,
    EvaluationConfig,
    LedgerConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SamplerConfig,
    ScratchConfig,
    TaskConfig,
    TrainConfig,
)
from fastrl.ledger import accounts, movement
from fastrl.ledger import ledger as ledger_module
from fastrl.ledger.gradients import sign_gradients
from fastrl.ledger.probe_set import KINDS, Probe, ProbeSet
from fastrl.ledger.ranks import by_rank, rank_statistics
from fastrl.ledger.updates import tokens_before, update_changes
from fastrl.policy.distributions import token_distributions
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.policy.scoring import score
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.records.jsonl import read_jsonl
from fastrl.run.training import train
from fastrl.tasks import countdown, find_kind
from fastrl.update import Updater, token_loss

MAX_NEW_TOKENS = 4
PROMPTS = [[3, 4, 3], [4]]
TEMPERATURE = 0.7


@pytest.fixture
def tokenizer():
    return scratch_tokenizer(ScratchConfig(characters="12"))  # <pad>, <eos>, <unk>, 1, 2


@pytest.fixture
def policy(tokenizer) -> Policy:
    """A peaked random model over 5 tokens."""
    model = scratch_model(ScratchConfig(hidden_size=32, num_layers=2, num_heads=2), tokenizer, seed=0)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(i)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return Policy(model, token_loss(AlgorithmConfig(surrogate="reinforce")), temperature=TEMPERATURE)


def whole_space(eos: int) -> list[tuple[list[int], str]]:
    """Every completion of at most MAX_NEW_TOKENS tokens over 5: ended by eos, or cut at the limit."""
    others = [t for t in range(5) if t != eos]
    ended = [[*w, eos] for n in range(MAX_NEW_TOKENS) for w in itertools.product(others, repeat=n)]
    cut = [list(w) for w in itertools.product(others, repeat=MAX_NEW_TOKENS)]
    return [(ids, "stop") for ids in ended] + [(ids, "length") for ids in cut]


@pytest.fixture
def everything(tokenizer) -> ProbeSet:
    """Both prompts with their whole completion spaces, kinds at random."""
    rng = random.Random(0)
    probes = [
        Probe(prompt, rng.choice(KINDS), ids, "", reason, 1)
        for prompt in range(len(PROMPTS))
        for ids, reason in whole_space(tokenizer.eos_token_id)
    ]
    return ProbeSet(["a", "b"], PROMPTS, probes)


def config_of(**algorithm) -> TrainConfig:
    return TrainConfig(
        sampler=SamplerConfig(max_new_tokens=MAX_NEW_TOKENS, temperature=TEMPERATURE),
        algorithm=AlgorithmConfig(surrogate="reinforce", **algorithm),
        batch=BatchConfig(prompts_per_step=2, rollouts_per_prompt=2, micro_batch_tokens=512),
        optimizer=OptimizerConfig(lr=1e-3),
        ledger=LedgerConfig(every=1, num_positions=200),
    )


def open_ledger(policy, probe_set, tokenizer, folder) -> ledger_module.Ledger:
    """The ledger of a hand-made probe set."""
    config = config_of()
    (folder / "ledger.jsonl").touch()
    base = ledger_module._initial(config, policy, probe_set)
    return ledger_module.Ledger(config, folder / "ledger.jsonl", probe_set, base, policy, tokenizer)


def brute_force(policy: Policy, prompt: list[int], ids: list[int]) -> float:
    """log π(ids | prompt), one forward of the bare model per token, in float64 from the logits on."""
    total = 0.0
    for t, token in enumerate(ids):
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt + ids[:t]]), use_cache=False).logits[0, -1]
        total += torch.log_softmax(logits.double() / TEMPERATURE, -1)[token].item()
    return total


def learn(policy: Policy, probe_set: ProbeSet, kind: str, advantage: float) -> None:
    """One real optimizer step on the completions of a kind."""
    config = config_of(objective="reinforce")
    rollouts = probe_set.rollouts.take(np.array([p.kind == kind for p in probe_set.probes]))
    Updater(policy, MasterOptimizer(policy, config.optimizer, 1), config).run(credited(rollouts, advantage))


def with_likeliest(policy: Policy, probe_set: ProbeSet) -> ProbeSet:
    """The whole space where the likeliest completion of a prompt is penalised and the second one is correct."""
    logprobs_S = ledger_module._sequence_logprobs(policy, probe_set, 512)
    kinds = ["other_wrong"] * len(probe_set.probes)
    for prompt in range(len(PROMPTS)):
        mine = [i for i, p in enumerate(probe_set.probes) if p.prompt == prompt]
        second, first = sorted(mine, key=logprobs_S.__getitem__)[-2:]
        kinds[first], kinds[second] = "penalised", "correct"
    probes = [dataclasses.replace(p, kind=k) for p, k in zip(probe_set.probes, kinds, strict=True)]
    return dataclasses.replace(probe_set, probes=probes)


def test_probabilities_match_brute_force_and_fill_the_space(policy, everything, tokenizer, tmp_path):
    logprobs_S = ledger_module._sequence_logprobs(policy, everything, 512)
    for i in range(0, len(everything.probes), 37):
        probe = everything.probes[i]
        assert logprobs_S[i] == pytest.approx(brute_force(policy, PROMPTS[probe.prompt], probe.ids), abs=2e-5)
    held = accounts.masses(everything, logprobs_S)
    assert np.abs(held["rest"]).max() < 1e-5
    for kind in KINDS:  # by hand, with python's own sums
        for prompt in range(2):
            pairs = zip(logprobs_S, everything.probes, strict=True)
            total = math.fsum(math.exp(x) for x, p in pairs if (p.prompt, p.kind) == (prompt, kind))
            assert held[kind][prompt] == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(("kind", "advantage"), [("penalised", -1.0), ("correct", 1.0)])
def test_what_left_is_what_arrived(policy, everything, tokenizer, tmp_path, kind, advantage):
    probe_set = with_likeliest(policy, everything)
    ledger = open_ledger(policy, probe_set, tokenizer, tmp_path)
    before = ledger.line(0)
    learn(policy, probe_set, kind, advantage)
    after = ledger.line(1)
    assert all(value == 0 for value in before["moved"].values())
    moved = after["moved"]
    assert moved["to_rest"] == pytest.approx(0, abs=1e-5)
    arrived = moved["to_correct"] + moved["to_other_wrong"] + moved["to_rest"]
    assert moved["left_penalised"] == pytest.approx(arrived, abs=1e-12)
    assert after["mass"]["penalised"] == pytest.approx(before["mass"]["penalised"] - moved["left_penalised"], abs=1e-12)
    if kind == "penalised":  # an NSR step lowers what it penalises, and the sampled tokens of it
        assert moved["left_penalised"] > 1e-3 and after["logprob"]["penalised"]["change"] < 0
        assert after["tokens"]["negative"]["movement"]["lost"] > 0
    else:
        assert moved["to_correct"] > 1e-3 and after["logprob"]["correct"]["change"] > 0
        assert after["tokens"]["positive"]["movement"]["lost"] < 0
    num_tokens = sum(len(p.ids) for p in probe_set.probes if p.kind == "penalised")
    assert after["tokens"]["negative"]["num"] == num_tokens


def test_over_the_whole_space_both_signs_have_one_gradient(policy, everything):
    """E[∇log π] = 0: the exact on-policy gradients of PSR and of NSR are equal (the constant-baseline identity)."""
    logprobs_S = ledger_module._sequence_logprobs(policy, everything, 512)
    gradient = sign_gradients(policy, everything, logprobs_S, 512)
    assert gradient["cosine"] == pytest.approx(1, abs=1e-5)
    assert gradient["correct_norm"] == pytest.approx(gradient["wrong_norm"], rel=1e-3)
    assert all(p.grad is None for p in policy.parameters())
    half = ProbeSet(everything.problem_ids, everything.prompt_ids, everything.probes[::2])
    assert sign_gradients(policy, half, logprobs_S[::2], 512)["cosine"] < 0.999


def test_distributions_are_the_models_own_whatever_the_chunks(policy, everything):
    rollouts = everything.rollouts
    positions = [(5, 1), (0, 0), (340, 3), (5, 0), (400, 2)]
    for num_rows, budget in ((64, 512), (1, 9)):
        found = {}
        for indices, logprobs_nV in token_distributions(policy, rollouts, positions, budget, num_rows):
            assert len(indices) <= num_rows
            found |= dict(zip(indices, logprobs_nV, strict=True))
        assert sorted(found) == list(range(len(positions)))
        for index, (i, t) in enumerate(positions):
            ids = torch.tensor([[*rollouts.prompt(i), *rollouts.completion(i)[:t]]])
            logits = policy.model(input_ids=ids, use_cache=False).logits[0, -1]
            torch.testing.assert_close(found[index], torch.log_softmax(logits / TEMPERATURE, -1), atol=1e-5, rtol=1e-5)


def test_movement_by_hand():
    """p goes from (.5, .3, .2, 0+) to (.2, .5, .25, .05) where token 0 was sampled."""
    tiny = 1e-9
    base = torch.tensor([[0.5, 0.3, 0.2, tiny]]).log()
    now = torch.tensor([[0.2, 0.5, 0.25, 0.05]]).log()
    y = torch.tensor([0])
    found = {k: v.item() for k, v in movement.movement_statistics(base, now, y).items()}
    assert (found["rank_base"], found["rank"]) == (1, 3)
    assert found["lost"] == pytest.approx(0.3) and found["arrived"] == pytest.approx(0.3)
    assert found["arrived_at_top"] == pytest.approx(0.2)
    assert found["gainer_rank"] == pytest.approx((0.2 * 2 + 0.05 * 3 + 0.05 * 4) / 0.3)
    assert found["follows_prior"] == pytest.approx(np.corrcoef([0.2, 0.05, 0.05], [0.3, 0.2, 0])[0, 1], abs=1e-6)
    (gainers,) = movement.top_gainers(base, now, y, 2)
    assert gainers[0]["token"] == 1 and gainers[0]["gain"] == pytest.approx(0.2)
    assert (gainers[0]["rank_base"], gainers[0]["rank"]) == (2, 1) and len(gainers) == 2


def softmax_step(probs: list[float], token: int) -> torch.Tensor:
    """(1,V) log-probs after one ascent step of size 1 on A·log p of the token, A = −1, by autograd."""
    logits = torch.tensor([probs], dtype=torch.float64).log().requires_grad_()
    (-torch.log_softmax(logits, -1)[0, token]).backward()
    return torch.log_softmax(logits.detach() + logits.grad, -1)


def test_the_rank_of_what_is_penalised_decides_who_gains():
    """By hand from z ← z − (e_y − p): the weights before normalisation are .6·e^.6, .3·e^.3, .1·e^−.9 and so on."""
    probs = [0.6, 0.3, 0.1]
    base = torch.tensor([probs] * 3, dtype=torch.float64).log()
    now = torch.cat([softmax_step(probs, token) for token in range(3)])
    torch.testing.assert_close(now[2].exp(), torch.tensor([0.710, 0.263, 0.026]).double(), atol=5e-4, rtol=0)
    torch.testing.assert_close(now[0].exp(), torch.tensor([0.438, 0.441, 0.120]).double(), atol=5e-4, rtol=0)
    found = {k: v.tolist() for k, v in rank_statistics(base, now, torch.tensor([0, 1, 2])).items()}
    assert found["rank"] == [1, 2, 3]
    assert found["lost"] == pytest.approx([0.1617, 0.1899, 0.0736], abs=1e-4)
    assert found["mode_change"] == pytest.approx([-0.1617, 0.2082, 0.1104], abs=1e-4)
    assert found["entropy_change"] == pytest.approx([0.0795, -0.2782, -0.2077], abs=1e-4)


def test_classes_of_rank_share_out_every_position_and_what_it_lost():
    rank = torch.tensor([1, 1, 2, 3, 10, 11, 500])
    lost = torch.tensor([0.4, 0.2, 0.1, 0.03, 0.01, 0.002, 0.0])
    rows = by_rank([{"rank": rank[:2], "lost": lost[:2]}, {"rank": rank[2:], "lost": lost[2:]}])
    assert [(row["from"], row["to"], row["num"]) for row in rows] == [(1, 1, 2), (2, 2, 1), (3, 10, 2), (11, None, 2)]
    assert [row["lost"] for row in rows] == pytest.approx([0.3, 0.1, 0.02, 0.001])
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert sum(row["share"] * row["lost"] for row in rows) == pytest.approx(lost.mean().item())
    assert by_rank([]) == []
    assert by_rank([{"rank": rank[2:3], "lost": lost[2:3]}])[0]["to"] == 2  # classes without a position are left out


def test_gradient_statistics_are_the_gradient_of_log_p_and_of_p():
    logits = torch.tensor([[1.0, -0.5, 2.0, 0.3]], requires_grad=True)
    y = torch.tensor([2])
    logprobs = torch.log_softmax(logits, -1)
    (of_log_p,) = torch.autograd.grad(logprobs[0, 2], logits, retain_graph=True)
    (of_p,) = torch.autograd.grad(logprobs[0, 2].exp(), logits)
    found = {k: v.item() for k, v in movement.gradient_statistics(logprobs.detach(), y).items()}
    others = [0, 1, 3]
    assert found["sampled"] == pytest.approx(of_log_p[0, 2].item(), abs=1e-6)
    assert found["others"] == pytest.approx(of_log_p[0, others].norm().item(), abs=1e-6)
    assert found["largest_other"] == pytest.approx(of_log_p[0, others].abs().max().item(), abs=1e-6)
    assert found["paper_sampled"] == pytest.approx(of_p[0, 2].item(), abs=1e-6)
    assert found["paper_others"] == pytest.approx(of_p[0, others].norm().item(), abs=1e-6)
    p = logprobs.detach().exp()
    assert found["entropy"] == pytest.approx(-(p * p.log()).sum().item(), abs=1e-6)


def test_bins_of_confidence_hold_every_position_once():
    p = torch.tensor([0.0, 0.1, 0.25, 0.6, 0.96, 1.0])
    rows = movement.by_confidence([{"p": p[:3], "sampled": 1 - p[:3]}, {"p": p[3:], "sampled": 1 - p[3:]}])
    assert [(row["from"], row["num"]) for row in rows] == [(0.0, 2), (0.25, 1), (0.5, 1), (0.95, 2)]
    assert rows[0]["sampled"] == pytest.approx(0.95)


def test_countdown_lists_every_solution_that_a_demonstration_could_show():
    assert countdown.solutions({"numbers": [1, 1, 1, 1], "target": 4}) == ["(1+1)*(1+1)", "1+1+1+1"]
    assert countdown.solutions({"numbers": [1, 2, 3, 4, 5], "target": 15}) == []
    for prompt, completion in countdown.demonstrations(random.Random(1), 60):
        numbers, target = prompt.rstrip(":").split("=")
        row = {"numbers": list(map(int, numbers.split())), "target": int(target)}
        listed = countdown.solutions(row)
        assert completion in listed and len(set(listed)) == len(listed)
        assert all(find_kind("countdown").reward(prompt, text, **row).reward == 1.0 for text in listed)


def test_an_update_lowers_what_it_penalises_and_moves_the_rest(policy, everything, tokenizer):
    """One completion penalised, one reinforced, one only looked at; changes against scores made by hand."""
    likely = with_likeliest(policy, everything)
    chosen = [i for i, p in enumerate(likely.probes) if p.kind in ("penalised", "correct")]
    rollouts = likely.rollouts.take([*chosen, 7])
    rows = rows_of(rollouts)
    before = [brute_force(policy, r.prompt_ids, r.completion_ids) for r in rows]
    credits = [-1.0 if likely.probes[i].kind == "penalised" else 0.5 for i in chosen] + [0.0]
    columns = {"policy_logprobs_N": score(policy, rollouts, 512)[0], "credits_N": rollouts.by_token(np.array(credits))}
    rollouts = replace(rollouts, **columns)
    config = config_of(objective="reinforce")
    kept = tokens_before(policy, rollouts, 3, 0, 512)
    Updater(policy, MasterOptimizer(policy, config.optimizer, 1), config).run(rollouts)
    found = update_changes(policy, rollouts, kept, 512)
    after = [brute_force(policy, r.prompt_ids, r.completion_ids) for r in rows]
    for name, sign in (("positive", 0.5), ("negative", -1.0), ("zero", 0.0)):
        mine = [i for i, credit in enumerate(credits) if credit == sign]
        assert (found[name]["num"], found[name]["mean_advantage"]) == (len(mine), sign)
        assert found[name]["completion_change"] == pytest.approx(
            np.mean([after[i] - before[i] for i in mine]), abs=1e-4
        )
    assert set(kept) == {"positive", "negative"}
    for name, sign in (("positive", 0.5), ("negative", -1.0)):  # what they lost, from log-probs made token by token
        positions, base_nV = kept[name]
        assert all(credits[i] == sign for i, _ in positions) and 0 < len(positions) <= 3
        by_hand = []
        for (i, t), row_V in zip(positions, base_nV, strict=True):
            token, context = rows[i].completion_ids[t], rows[i].completion_ids[:t]
            now = brute_force(policy, [*rows[i].prompt_ids, *context], [token])
            by_hand.append(row_V[token].exp().item() - math.exp(now))
        ranked = found[name]["by_rank"]
        assert sum(r["share"] * r["lost"] for r in ranked) == pytest.approx(np.mean(by_hand), abs=1e-5)
        assert sum(r["num"] for r in ranked) == len(positions)
    assert found["negative"]["completion_change"] < 0 < found["positive"]["completion_change"]
    assert found["zero"]["completion_change"] != 0


def run_config(folder, model, **changes) -> TrainConfig:
    config = TrainConfig(
        model=ModelConfig(path=str(model)),
        task=TaskConfig(num_train=20, num_validation=5, num_test=3, num_workers=1),
        sampler=SamplerConfig(max_new_tokens=12),
        algorithm=AlgorithmConfig(objective="nsr", updates_per_batch=2),
        batch=BatchConfig(prompts_per_step=3, rollouts_per_prompt=4, micro_batch_tokens=400),
        optimizer=OptimizerConfig(lr=1e-3),
        evaluation=EvaluationConfig(at_end=False),
        run=RunConfig(folder=str(folder), num_steps=4, checkpoint_every=1, scored_rollouts=5, sinks=()),
        ledger=LedgerConfig(every=2, num_prompts=3, num_samples=6, num_positions=10, gradients=True),
    )
    return dataclasses.replace(config, **changes)


def test_a_run_keeps_a_ledger_and_is_not_moved_by_it(countdown_folder, tmp_path):
    train(run_config(tmp_path / "with", countdown_folder))
    rows = read_jsonl(tmp_path / "with" / "ledger.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4]
    probe_set = json.loads((tmp_path / "with" / "ledger" / "probe_set.json").read_text())
    assert len(probe_set["problem_ids"]) == 3 and {p["kind"] for p in probe_set["probes"]} == set(KINDS)
    drawn = sum(p["num_samples"] for p in probe_set["probes"])
    assert drawn == 18
    for row in rows:
        assert sum(row["mass"].values()) == pytest.approx(1, abs=1e-9)
        assert row["gradient"]["wrong_norm"] > 0 and row["gradient"]["wrong_tokens"] > 0
        assert len(row["tokens"]["negative"]["largest"]) == 8
        signs = {name: part["num"] for name, part in row["update"].items()}
        assert sum(signs.values()) == (5 if row["step"] else 0) and "positive" not in signs
        ranked = [row["tokens"]["negative"], *([row["update"]["negative"]] if row["step"] else [])]
        assert all(sum(r["num"] for r in part["by_rank"]) == 10 for part in ranked)
    assert rows[0]["moved"]["left_penalised"] == 0 != rows[2]["moved"]["left_penalised"]
    train(run_config(tmp_path / "without", countdown_folder, ledger=LedgerConfig()))
    assert not (tmp_path / "without" / "ledger.jsonl").exists()
    a, b = (load_file(tmp_path / name / "checkpoints/step-000004/model.safetensors") for name in ("with", "without"))
    assert all(a[name].equal(b[name]) for name in a)


def test_resume_reads_the_probe_set_and_continues_the_file(countdown_folder, tmp_path):
    config = run_config(tmp_path / "run", countdown_folder)
    train(config)
    path = tmp_path / "run" / "ledger.jsonl"
    whole = read_jsonl(path)
    newest = tmp_path / "run" / "checkpoints" / "step-000004" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])  # torn: the run goes on from step 3
    train(config, resume=True)
    assert read_jsonl(path) == whole
    assert [row["step"] for row in read_jsonl(tmp_path / "run" / "ledger.dropped.jsonl")] == [4]
    path.write_text("".join(json.dumps(row) + "\n" for row in whole[:2]))  # killed between checkpoint and ledger
    train(config, resume=True)
    assert [row | {"update": {}} for row in whole[2:]] == read_jsonl(path)[2:]
    (tmp_path / "run" / "ledger" / "probe_set.json").unlink()
    with pytest.raises(ValueError, match="a ledger is begun before the first update, not at step 4"):
        train(config, resume=True)


def test_the_tables_of_a_ledger_weigh_every_token_once(tmp_path, capsys):
    """3 tokens of rank 1 lost 0.2; in a second step 1 lost 0.4, beside 4 of rank 3 to 10: 0.25 a token, half of all."""
    row = {"from": 1, "to": 1, "num": 3, "share": 1.0, "p": 0.6, "lost": 0.2, "mode_change": -0.2}
    row |= {"entropy_change": 0.1}
    rare = row | {"from": 3, "to": 10, "num": 4, "share": 0.8, "p": 0.1, "lost": 0.07, "mode_change": 0.11}
    updates = [{"negative": {"by_rank": rows}} for rows in ([row], [row | {"num": 1, "share": 0.2, "lost": 0.4}, rare])]
    tokens = {"negative": {"by_rank": [row]}, "positive": {"by_rank": []}}
    moved = {"left_penalised": 0.25, "to_correct": 0.25, "to_other_wrong": 0.0, "to_rest": 0.0}
    lines = [{"step": step, "update": update} for step, update in enumerate([{}, *updates])]
    rest = {"tokens": tokens, "moved": moved, "prompts": {"correct": [0.1, 0.2]}}
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(line | rest) + "\n" for line in lines))
    assert main(["ledger", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "2 other prompts" in text and "2 steps" in text and "+0.2500" in text
    mean = [line.split("|")[1:-1] for line in text[text.index("2 steps") :].splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in mean[2]] == ["1", "4", "50 %", "0.600", "+0.2500", "+0.1250", "-0.2000", "+0.1000"]
    assert [cell.strip() for cell in mean[3]][:6] == ["3–10", "4", "50 %", "0.100", "+0.0700", "+0.0350"]
    assert main(["ledger", str(tmp_path / "none")]) == 2 and "ledger.every" in capsys.readouterr().err
