"""Python's time to make completions of what an engine sampled, per token: vLLM's own output processor, and our reading.

    python bench/bench_outputs.py [--sequences 256] [--tokens 512] [--rounds 7]      prints a table; no model is loaded

An engine in the trainer's process does this between two decode steps. Four ways to ask for it, in turn in every round:
an output at every step or one at the end, log-probs as a dict and an object a token or flat. Garbage collection is on,
as in a run. The steps' arrays are made before the clock starts.
"""

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from machine import machine
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.outputs import LogprobsLists

KINDS = {"every step": RequestOutputKind.CUMULATIVE, "the end": RequestOutputKind.FINAL_ONLY}
WAYS = [(when, is_flat) for when in KINDS for is_flat in (False, True)]


def request(name: str, when: str, is_flat: bool) -> EngineCoreRequest:
    parameters = SamplingParams(logprobs=0, flat_logprobs=is_flat, output_kind=KINDS[when], detokenize=False)
    named = dict.fromkeys(("mm_features", "pooling_params", "lora_request", "cache_salt", "data_parallel_rank"))
    values = {"prompt_token_ids": [1, 2, 3], "sampling_params": parameters, "arrival_time": 0.0}
    return EngineCoreRequest(request_id=name, external_req_id=name, **named, **values)


def steps(num_sequences: int, num_tokens: int) -> list[list[EngineCoreOutput]]:
    """What the engine's core hands over after each decode step."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(num_tokens):
        ids = generator.integers(0, 150_000, (num_sequences, 1))
        logprobs = generator.normal(size=(num_sequences, 1)).astype(np.float32)
        ends = {"finish_reason": FinishReason.LENGTH} if number + 1 == num_tokens else {}
        outputs = []
        for i in range(num_sequences):
            lists = LogprobsLists(ids[i : i + 1], logprobs[i : i + 1], np.ones(1, dtype=np.int64))
            outputs.append(EngineCoreOutput(str(i), [int(ids[i, 0])], new_logprobs=lists, **ends))
        found.append(outputs)
    return found


def read(sample, is_flat: bool) -> list[float]:
    """Log-probs of a finished completion as Python numbers."""
    if is_flat:
        return sample.logprobs.logprobs
    return [entry[token].logprob for token, entry in zip(sample.token_ids, sample.logprobs, strict=True)]


def seconds(taken: list[list[EngineCoreOutput]], when: str, is_flat: bool) -> tuple[float, list[list[float]]]:
    processor = OutputProcessor(None, log_stats=False)
    for i in range(len(taken[0])):
        processor.add_request(request(str(i), when, is_flat), None)
    completions = []
    start = time.perf_counter()
    for outputs in taken:
        finished = [o for o in processor.process_outputs(outputs).request_outputs if o.finished]
        completions += [read(output.outputs[0], is_flat) for output in finished]
    return time.perf_counter() - start, completions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"sequences": 256, "tokens": 512, "rounds": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    work = parser.parse_args()
    taken = steps(work.sequences, work.tokens)
    found, results = {way: [] for way in WAYS}, {}
    for _ in range(work.rounds):
        for way in WAYS:
            gc.collect()
            taken_s, results[way] = seconds(taken, *way)
            found[way].append(1e6 * taken_s / (work.sequences * work.tokens))
    assert all(result == results[WAYS[0]] for result in results.values()), "the ways do not agree"
    print(f"{machine()}\n{work.sequences} sequences of {work.tokens} tokens, µs a token: median (p20, p80)\n")
    for when, is_flat in WAYS:
        low, *_, high = statistics.quantiles(found[when, is_flat], n=5)
        median = statistics.median(found[when, is_flat])
        print(f"output at {when:10}  {'flat' if is_flat else 'dicts':5}  {median:6.2f} ({low:.2f}, {high:.2f})")


if __name__ == "__main__":
    main()
