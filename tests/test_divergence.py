"""Which steps count towards the row of steps without a finite gradient."""

import pytest

from fastrl.run.divergence import DivergedError, Divergence


def metrics(num_updates: int, num_nonfinite: int) -> dict[str, float]:
    return {"update/num_updates": num_updates, "update/num_nonfinite": num_nonfinite}


MOVED, PARTLY, EMPTY, BROKEN = metrics(2, 0), metrics(1, 1), metrics(0, 0), metrics(0, 2)


@pytest.mark.parametrize("interlude", [[MOVED], [PARTLY], [EMPTY, MOVED]])
def test_one_update_ends_the_row(interlude):
    divergence = Divergence(3)
    for step, row in enumerate([BROKEN, BROKEN, *interlude, BROKEN, BROKEN], 1):
        divergence.check(step, row)
    with pytest.raises(DivergedError, match="last 3 steps"):
        divergence.check(9, BROKEN)


def test_steps_without_any_update_do_not_end_it():
    divergence = Divergence(2)
    for step, row in enumerate([BROKEN, EMPTY, EMPTY], 1):
        divergence.check(step, row)
    with pytest.raises(DivergedError, match=r"max_nonfinite_steps = 2.*before step 4"):
        divergence.check(4, BROKEN)


def test_zero_never_stops():
    divergence = Divergence(0)
    for step in range(100):
        divergence.check(step, BROKEN)
    assert divergence.num_steps == 100
