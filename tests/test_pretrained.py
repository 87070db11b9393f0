"""A model's config and tokenizer are read once in a run, however many of its parts need them."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from test_training import config_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fastrl.cli import main
from fastrl.config.schema import ModelConfig
from fastrl.plan.footprint import storageless_model
from fastrl.policy.attention import choose_attention
from fastrl.policy.lora import check_targets
from fastrl.policy.pretrained import Pretrained
from fastrl.run.training import train

PLAN = ["plan", "--device", "cpu", "--memory-gib", "0.001", "--sampler.max-new-tokens", "16"]
PLAN += ["--batch.micro-batch-tokens", "64", "--task.num-train", "10", "--optimizer.offload", "True"]


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """Calls of transformers' own `from_pretrained`, which still read the folder."""
    counted = Counter()
    for auto in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):

        def read(path, *args, own=auto.from_pretrained, name=auto.__name__, **kwargs):
            counted[name] += 1
            return own(path, *args, **kwargs)

        monkeypatch.setattr(auto, "from_pretrained", read)
    return counted


def test_a_run_with_a_reference_reads_its_model_once(countdown_folder, tmp_path, reads):
    config = config_of(tmp_path / "run", countdown_folder)
    algorithm = replace(config.algorithm, kl_coef=0.01)
    train(replace(config, algorithm=algorithm, run=replace(config.run, num_steps=1)))
    assert reads == {"AutoConfig": 1, "AutoTokenizer": 1, "AutoModelForCausalLM": 2}


def test_a_plan_and_its_savings_read_the_model_once(countdown_folder, reads, capsys):
    assert main([*PLAN, "--model.path", str(countdown_folder)]) == 0
    assert "no saving that is tried makes it fit" in capsys.readouterr().out
    assert reads == {"AutoConfig": 1, "AutoTokenizer": 1}


def test_what_was_read_stays_what_it_was(countdown_folder):
    """Models are built from it, and transformers writes dtype and attention into the config that it builds from."""
    base = Pretrained(ModelConfig(str(countdown_folder), lora_rank=4))
    before = base.architecture.to_dict(), base.architecture._attn_implementation
    choice = choose_attention("eager", torch.device("cpu"), torch.bfloat16, base.architecture)
    with storageless_model(base.architecture, torch.bfloat16, replace(choice, is_packed=False), base.settings):
        pass
    check_targets(base.settings, base.architecture)
    assert (base.architecture.to_dict(), base.architecture._attn_implementation) == before
