"""One, two and four processes with gloo make the same update, and the exchanges behind it."""

from pathlib import Path

import pytest
import torch
from torchrun import torchrun
from update_ranks import CRITICS, LATE, SCENARIOS, scenarios_of, teach, update

from fastrl.policy.packing import spread
from fastrl.policy.reduction import reduction_of
from fastrl.process.ranks import ALONE, Ranks


@pytest.fixture(scope="module")
def several(tmp_path_factory, family_folder) -> dict[int, dict]:
    """The results of every scenario, by number of processes."""
    folder, root = str(family_folder("qwen2.5")), tmp_path_factory.mktemp("ranks")
    results = {1: {name: update(folder, ALONE, name) for name in SCENARIOS}}
    results[1] |= {f"critic {name}": teach(folder, ALONE, rewarded) for name, rewarded in CRITICS.items()}
    for num_ranks in (2, 4):
        output = root / f"{num_ranks}.pt"
        process = torchrun(num_ranks, [str(Path(__file__).parent / "update_ranks.py"), folder, str(output)])
        assert process.returncode == 0, process.stdout + process.stderr
        results[num_ranks] = torch.load(output, weights_only=False)
    return results


@pytest.mark.distributed
@pytest.mark.parametrize(("num_ranks", "name"), [(n, name) for n in (2, 4) for name in scenarios_of(n)])
def test_several_ranks_make_the_update_of_one(several, name, num_ranks):
    """The gradient to rounding; weights within lr · 1 %: Adam divides by √v, where noise makes steps of its own."""
    alone, together = several[1][name], several[num_ranks][name]
    for key, value in alone["metrics"].items():
        if key not in ("update/num_micro_batches", "packing/fill", "packing/efficiency"):  # the cut's own
            assert together["metrics"][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    gradients = alone["gradient"] or {}  # none where nothing is kept
    largest = max((g.abs().max().item() for g in gradients.values()), default=0.0)
    for key, gradient in gradients.items():
        assert (gradient - together["gradient"][key]).abs().max().item() <= 1e-5 * largest, key
    worst = max((w - together["weights"][k]).abs().max().item() for k, w in alone["weights"].items())
    assert worst < 1e-5, worst
    for (ours, _), (theirs, _) in zip(alone["scores"], together["scores"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.distributed
@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", ["small", "four-updates", "one-kept"])
def test_gradients_are_reduced_once_an_update(several, name, num_ranks):
    """One reduce-scatter of each unit an update, of each micro-batch without; the sums differ by rounding."""
    late, every = several[num_ranks][f"{name}, {LATE}"], several[num_ranks][name]
    num_updates = late["metrics"]["update/num_updates"]
    assert late["num_reductions"] == num_updates * late["num_units"]
    num_rounds, rest = divmod(every["num_reductions"], every["num_units"])
    assert not rest and num_rounds >= every["metrics"]["update/num_micro_batches"] / num_ranks
    assert num_rounds > num_updates or name != "small"
    largest = max(g.abs().max().item() for g in every["gradient"].values())
    for key, gradient in every["gradient"].items():
        assert (gradient - late["gradient"][key]).abs().max().item() <= 1e-6 * largest, key


@pytest.mark.distributed
def test_scenarios_are_what_their_names_say(several):
    alone = {name: result["metrics"] for name, result in several[1].items()}
    assert alone["none-kept"]["update/num_empty"] == 1 and alone["none-kept"]["update/num_updates"] == 0
    assert alone["one-kept"]["update/num_micro_batches"] == 1
    assert alone["four-updates"]["update/num_updates"] == 4
    assert alone["uneven"]["update/num_micro_batches"] % 4 != 0
    assert several[4]["uneven"]["metrics"]["update/num_micro_batches"] % 4 == 0
    assert several[4]["micro-batch-mean"]["metrics"]["update/num_micro_batches"] % 4 != 0  # some ranks fill
    assert several[1]["none-kept"]["gradient"] is None and several[1]["uneven"]["gradient"]
    moved = (several[1]["uneven"]["weights"][k] - w for k, w in several[1]["none-kept"]["weights"].items())
    assert max(m.abs().max().item() for m in moved) > 5e-4


@pytest.mark.parametrize(
    ("setting", "device", "gib", "num_ranks", "expected"),
    [
        ("auto", "cuda", 80, 8, "update"),  # 4 bytes · 4 · 2³⁰ parameters are 16 GiB, a quarter is 20
        ("auto", "cuda", 63, 8, "micro-batch"),
        ("auto", "cpu", 80, 1, "update"),
        ("auto", "cpu", 80, 2, "micro-batch"),  # ranks share a machine's memory
        ("update", "cuda", 1, 8, "update"),
        ("micro-batch", "cuda", 80, 8, "micro-batch"),
    ],
)
def test_gradients_are_reduced_once_where_memory_allows(setting, device, gib, num_ranks, expected):
    assert reduction_of(setting, 4 << 30, torch.device(device), gib << 30, num_ranks) == expected


@pytest.mark.distributed
@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", CRITICS)
def test_several_ranks_teach_a_critic_as_one(several, name, num_ranks):
    """The head is 0 at first, so that the backbone moves from the second update on."""
    alone, together = several[1][f"critic {name}"], several[num_ranks][f"critic {name}"]
    assert together["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, abs=1e-6, nan_ok=True)
    assert alone["metrics"]["critic/num_updates"] == {"all": 3, "one": 1, "none": 0}[name]
    assert together["before"] == pytest.approx(alone["before"], abs=1e-6)
    assert together["after"] == pytest.approx(alone["after"], abs=1e-3)
    assert (name == "none") == (not alone["gradient"])
    for key, gradient in alone["gradient"].items():
        assert (gradient - together["gradient"][key]).abs().max().item() <= 1e-5, key
    worst = max((w - together["weights"][k]).abs().max().item() for k, w in alone["weights"].items())
    assert worst < 1e-5, worst


def test_alone_exchanges_are_the_identity():
    assert ALONE.gather("x") == ["x"] and ALONE.share([1, 2, 3], 0) == [1, 2, 3] and ALONE.is_main
    assert ALONE.agree(lambda: 3) == ALONE.on_main(lambda: 3) == 3 and ALONE.apart() is ALONE
    with pytest.raises(KeyError):
        ALONE.on_main({}.popitem)


def test_every_rank_gets_equally_many_items():
    assert [Ranks(r, 3).share(list("abcd"), "-") for r in range(3)] == [["a", "d"], ["b", "-"], ["c", "-"]]


def test_spread_balances_and_keeps_everything():
    sizes = [9, 1, 1, 1, 5, 4, 3]
    parts = spread(sizes, 3)
    assert sorted(i for part in parts for i in part) == list(range(7))
    assert max(sum(sizes[i] for i in part) for part in parts) <= 9
    assert spread([], 2) == [[], []] and spread([4], 2) in ([[0], []], [[], [0]])


@pytest.mark.distributed
@pytest.mark.parametrize("error", ["KeyError", pytest.param("OSError", marks=pytest.mark.slow), "ValueError", "none"])
def test_an_error_of_one_rank_is_everyones_and_told_once(error):
    """Rank 1 of three fails, then 1 and 2: all raise (and go on, where they catch it), one tells, nobody waits."""
    process = torchrun(3, [str(Path(__file__).parent / "agree_ranks.py"), error])
    said = process.stdout + process.stderr
    if error == "none":
        assert process.returncode == 0 and said.count("agreed on [0, 10, 20], main's 'x'") == 3, said
        return
    expected = {"KeyError": "RuntimeError KeyError: 'broken'"}.get(error, f"{error} broken")
    for rank in range(3):
        caught = f"{error} {KeyError('broken') if error == 'KeyError' else 'broken'}" if rank == 1 else expected
        assert f"rank {rank} caught {caught}\n" in said, said
    assert process.returncode != 0 and said.count("broken again") == 1, said
