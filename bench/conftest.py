"""Options and the table that each benchmark file fills and leaves behind. Run by `make bench` only."""

import sys
from pathlib import Path

import pytest
from machine import Row, Table


def pytest_addoption(parser) -> None:
    parser.addoption("--scale", type=float, default=1.0, help="fraction of the rows; below 1 nothing is written")
    parser.addoption("--results", type=Path, default=Path(__file__).parent / "results", help="where tables go")


@pytest.fixture(scope="module")
def table(request):
    """Filled by the file's benchmarks; printed, and written to bench/results at full size."""
    stem = request.module.__name__.rsplit(".", 1)[-1].removeprefix("bench_")
    command = "python -m pytest " + " ".join(sys.argv[1:])
    table = Table(stem, command, request.config.getoption("--results"), stem)
    yield table
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + table.markdown())
    if request.config.getoption("--scale") == 1.0:
        table.save()


@pytest.fixture
def measure(benchmark, table):
    """measure(what, shape, who, run, setup, rounds): times run(*setup()), adds a row, returns its median in ms."""

    def run_benchmark(what: str, shape: str, who: str, run, setup, rounds: int, **extra) -> float:
        benchmark.group = f"{what} {shape}"
        benchmark.pedantic(run, setup=lambda: (setup(), {}), rounds=rounds, warmup_rounds=1)
        times = sorted(benchmark.stats.stats.data)
        p20, p80 = times[len(times) // 5], times[len(times) - 1 - len(times) // 5]
        median = benchmark.stats.stats.median
        table.rows.append(Row(what, shape, who, 1e3 * median, 1e3 * p20, 1e3 * p80, **extra))
        return 1e3 * median

    return run_benchmark


@pytest.fixture(scope="module")
def medians() -> dict[tuple, float]:
    """(shape, who) → median ms, for the ratios at the end of a file."""
    return {}
