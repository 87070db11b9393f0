"""Drawing with a real sampler and real verifier processes: order, whole groups, judging while sampling."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from fastrl.config.schema import ModelConfig, TaskConfig
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.rollouts import Rollouts
from fastrl.sample_and_judge import Arena, whole_groups
from fastrl.sampling.embedded import EmbeddedSampler
from fastrl.sampling.protocol import SamplerError, SamplingSettings
from fastrl.tasks import load_task
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.verify import make_pool

SETTINGS, SEEDS = SamplingSettings(num_samples=4, max_new_tokens=10), list(range(5))


@pytest.fixture(scope="module")
def arena(countdown_folder) -> Iterator[Callable[[int], Arena]]:
    """arena(batch_size): sampling so many sequences at once."""
    config = TaskConfig(name="countdown", num_train=5)
    task, source = load_task(config), Pretrained(ModelConfig(path=str(countdown_folder)))
    model = load_model(source)
    with make_pool(task.reward, config) as pool:

        def make(batch_size: int) -> Arena:
            sampler = EmbeddedSampler(model, stop_token_ids=[1], pad_token_id=0, batch_size=batch_size)
            return Arena(task, source.tokenizer, sampler, pool, Policy(model), Correctness())

        yield make


def test_problems_come_in_order_whatever_the_parts(arena):
    """Three sequences at once: parts that cut groups. The same rollouts, rewards and reasons."""
    whole, cut = (arena(size).draw(arena(size).task.train, SETTINGS, SEEDS) for size in (64, 3))
    assert whole.groups_R.tolist() == np.repeat(np.arange(5), 4).tolist()
    for index in range(20):
        assert whole.completion(index).tolist() == cut.completion(index).tolist()
    assert whole.reasons_R.tolist() == cut.reasons_R.tolist() and whole.texts_R is None
    np.testing.assert_array_equal(whole.rewards_R, cut.rewards_R)
    few = list(arena(64).blocks(arena(64).task.train, SETTINGS, SEEDS))
    assert [text for block in few for text in block.texts_R] and len(few) == 1


def test_truncated_completions_are_wrong_by_the_one_rule(arena):
    drawn = arena(64).draw(arena(64).task.train, replace(SETTINGS, max_new_tokens=2), SEEDS)
    assert drawn.is_truncated_R.any()
    assert set(drawn.reasons_R[drawn.is_truncated_R]) == {"truncated"} and not drawn.rewards_R.any()


class InParts:
    """Hands the rollouts of a sampler over prompt by prompt; `between` runs between the first and the second."""

    def __init__(self, sampler: EmbeddedSampler, between: Callable[[], None]):
        self.sampler, self.between = sampler, between

    def generate(self, *request: object) -> Iterator[Rollouts]:
        rollouts = Rollouts.concat(self.sampler.generate(*request))
        yield rollouts.take(rollouts.groups_R == 0)
        self.between()
        yield rollouts.take(rollouts.groups_R > 0)


class Heard:
    """A verifier that tells when it is asked."""

    def __init__(self, pool: object, event: threading.Event):
        self.pool, self.event = pool, event

    def unit(self) -> str:
        return self.pool.unit()

    def score(self, items: list) -> list:
        self.event.set()
        return self.pool.score(items)


def test_a_part_is_judged_while_the_next_is_sampled(arena):
    plain, judged = arena(64), threading.Event()

    def wait_for_the_verifier() -> None:
        assert judged.wait(20), "the first part was not judged before the second was made"

    sampler = InParts(plain.sampler, wait_for_the_verifier)
    both = replace(plain, sampler=sampler, verifier=Heard(plain.verifier, judged))
    drawn, expected = (a.draw(plain.task.train, SETTINGS, SEEDS) for a in (both, plain))
    np.testing.assert_array_equal(drawn.tokens_T, expected.tokens_T)
    np.testing.assert_array_equal(drawn.rewards_R, expected.rewards_R)


def test_a_sampler_that_dies_leaves_a_verifier_that_works(arena):
    def die() -> None:
        raise SamplerError("the engine died")

    plain = arena(64)
    with pytest.raises(SamplerError, match="the engine died"):
        replace(plain, sampler=InParts(plain.sampler, die)).draw(plain.task.train, SETTINGS, SEEDS)
    assert len(plain.draw(plain.task.train, SETTINGS, SEEDS)) == 20


def test_groups_that_parts_cut_come_whole_and_in_order():
    """Samples of one prompt come in order; prompts, and cuts through them, as the sampler likes."""
    groups = [2, 2, 0, 0, 0, 1, 2, 1, 1]
    batch = Rollouts.of([[9]] * 9, [[100 + i] for i in range(9)], groups=groups)
    parts = [batch.take(part) for part in ([0], [1, 2, 3], [4, 5], [6, 7], [8])]
    found = [(part.groups_R.tolist(), part.completions_N.tolist()) for part in whole_groups(parts, 3)]
    assert found == [([0] * 3, [102, 103, 104]), ([2] * 3, [100, 101, 106]), ([1] * 3, [105, 107, 108])]
    with pytest.raises(AssertionError, match="left samples out"):
        list(whole_groups(parts[:2], 3))
