"""The one file that knows vLLM: an engine inside this process, behind a handful of plain operations.

Nothing of vLLM is imported before the first `Engine`. What an engine does to its process is undone (`side_effects`);
torch.distributed stays initialised until `close`, with world size 1 unless it was initialised before (torchrun: one
engine per process, each its own replica).
tests/test_vllm_contract.py says, assumption by assumption, what a vLLM version has to keep true.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastrl.process.seeds import seed_of
from fastrl.process.watchdog import alive
from fastrl.prompts.stops import Stops
from fastrl.sampling.kv_budget import served_rank
from fastrl.sampling.protocol import SamplerError, SamplingSettings
from fastrl.sampling.side_effects import EngineStream, undone_side_effects
from fastrl.sampling.weights.slots import Slot, adapter_slots, served_slots

TESTED_VERSIONS = {"0.25.1": "CUDA", "0.29.0": "CPU", "0.31.0": "CPU", "0.32.0": "CPU"}
ADAPTER_ID = 1  # the only adapter's
NO_PATH = "(handed over in memory)"  # read only if vLLM had lost the adapter: an error that names it


@dataclass(frozen=True)
class EngineSettings:
    """path: Hugging Face folder or hub id. Tokens count prompt and completion of the longest sequence to come.

    lora_rank: of the adapter to come, 0: none; lora_targets: names of the layers that it is on, such as q_proj.
    """

    path: str
    dtype: torch.dtype
    max_sequence_tokens: int
    max_num_sequences: int
    kv_cache_bytes: int
    kv_cache_dtype: str = "auto"
    trust_remote_code: bool = False
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()
    can_release_kv_cache: bool = False


@dataclass(frozen=True)
class Request:
    """One sequence to sample."""

    prompt_ids: list[int]
    seed: int

    def behind(self, completion: "Completion") -> "Request":
        """What goes on with a completion, under random numbers of its own."""
        return Request(self.prompt_ids + completion.token_ids, seed_of(self.seed, len(completion.token_ids)))


@dataclass(frozen=True)
class Completion:
    """Sampled tokens (the stop token included), their log-probs, stop | length, prompt tokens read from the cache."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    num_cached_tokens: int


class Engine:
    """An in-process vLLM engine. ValueError when vLLM cannot serve the model within the given budgets."""

    def __init__(self, settings: EngineSettings):
        if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
            raise ValueError("TRITON_INTERPRET is set: vLLM cannot run in a process that interprets Triton; unset it")
        self.settings = settings
        self._stream = EngineStream()
        with undone_side_effects(), self._stream.building():
            self._llm = _build(settings)

    @property
    def block_size(self) -> int:
        """Tokens of a KV block: shorter prefixes are never cached."""
        return self._llm.llm_engine.vllm_config.cache_config.block_size

    def generate(
        self, requests: list[Request], settings: SamplingSettings, stop_token_ids: list[int]
    ) -> list[Completion]:
        """One completion per request, in order, with the loaded adapter. SamplerError with the cause of a failure."""
        completions = dict(self.stream(requests, settings, settings.stops_with(stop_token_ids)))
        return [completions[i] for i in range(len(requests))]

    def stream(
        self, requests: list[Request], settings: SamplingSettings, stops: Stops
    ) -> Iterator[tuple[int, Completion]]:
        """(index of the request, completion), each as soon as it is finished; else as `generate`.

        The engine knows tokens alone: one that only looked like the end of a stop text is followed by another request,
        which reads what there is from the cache.
        """
        engine, waiting, drawn = self._llm.llm_engine, set(), {}

        def add(number: str, request: Request, max_new_tokens: int) -> None:
            parameters = _parameters(request, replace(settings, max_new_tokens=max_new_tokens), stops)
            prompt = {"prompt_token_ids": request.prompt_ids}
            engine.add_request(number, prompt, parameters, lora_request=self._adapter())
            waiting.add(number)

        try:
            with self._working("generate"):
                for index, request in enumerate(requests):
                    add(str(index), request, settings.max_new_tokens)
            while waiting:
                alive()
                # the CPU sampler draws from the global generator before it honours a request's own seed
                with self._working("generate"), torch.random.fork_rng(devices=[]):
                    finished = engine.step()
                for output in finished:
                    waiting.remove(output.request_id)
                    index = int(output.request_id.partition("+")[0])
                    completion = _joined(drawn.pop(index, None), _completion(output))
                    if completion.finish_reason == "length" or stops.is_end(completion.token_ids):
                        yield index, completion
                    elif (num := len(completion.token_ids)) == settings.max_new_tokens:
                        yield index, replace(completion, finish_reason="length")
                    else:
                        drawn[index] = completion
                        with self._working("generate"):
                            add(f"{index}+{num}", requests[index].behind(completion), settings.max_new_tokens - num)
        finally:
            if waiting:  # an error, or nobody listens any more
                engine.abort_request(list(waiting))

    def _adapter(self) -> Any:
        """vLLM's name of the loaded adapter; None without one."""
        from vllm.lora.request import LoRARequest

        return LoRARequest("trained", ADAPTER_ID, NO_PATH) if self.settings.lora_rank else None

    def reset_prefix_cache(self) -> bool:
        """Forget all cached keys and values; whether the engine says it did."""
        with self._working("reset its prefix cache"):
            return bool(self._llm.reset_prefix_cache())

    def release_kv_cache(self) -> None:
        """Give the memory of the KV cache back until `restore_kv_cache`; weights and CUDA graphs stay in place."""
        with self._working("release its KV cache"):
            self._llm.sleep(level=0)
            self._llm.release_kv_cache_memory()

    def restore_kv_cache(self) -> None:
        """Memory for the KV cache again, at the same addresses, and empty."""
        with self._working("restore its KV cache"):
            if not self._llm.wake_up(tags=["kv_cache"]):
                raise RuntimeError("parts of the engine are still asleep")

    def slots(self) -> list[Slot]:
        """All parameters of the served module as they are now, tied ones once."""
        return self.apply_model(served_slots)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy Hugging Face tensors into the served module through its own loader."""
        with self._working("load weights"), torch.no_grad():
            self.apply_model(lambda model: model.load_weights(weights) and None)

    def load_adapter(self, layers: dict[str, tuple[Tensor, Tensor]]) -> None:
        """From here on add B·A·x to each named layer; A (r, in) and B (out, r) are copied. Replaces an earlier one."""
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.lora_weights import LoRALayerWeights

        loras = {n: LoRALayerWeights(n, len(A), len(A), A.clone(), B.clone()) for n, (A, B) in layers.items()}

        def load(model: nn.Module) -> None:
            manager = model.lora_manager
            manager.remove_adapter(ADAPTER_ID)
            manager.add_adapter(LoRAModel(ADAPTER_ID, self.settings.lora_rank, loras))
            manager.activate_adapter(ADAPTER_ID)

        with self._working("load the adapter"), torch.no_grad():
            self.apply_model(load)

    def adapter_slots(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A (R, in) and B (out, R) that are computed with, zero beyond the adapter's rank, by layer; no copies.

        Empty while no adapter is active.
        """
        return self.apply_model(lambda model: adapter_slots(model, ADAPTER_ID))

    @contextmanager
    def _working(self, action: str) -> Iterator[None]:
        """Run the block on the engine's stream. SamplerError for any exception: all of them are the engine's."""
        try:
            with self._stream.current():
                yield
        except Exception as error:
            raise SamplerError(f"vLLM failed to {action}: {type(error).__name__}: {_one_line(error)}") from error

    def apply_model(self, function: Callable[[nn.Module], Any]) -> Any:
        """function(served module), in this process."""
        return self._llm.apply_model(function)[0]

    def close(self) -> None:
        """Stop the engine, free its KV cache and leave torch.distributed as it was before."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None


def _parameters(request: Request, settings: SamplingSettings, stops: Stops) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=settings.repetition_penalty,
        max_tokens=settings.max_new_tokens,
        seed=request.seed,
        stop_token_ids=sorted(stops.end_ids | stops.text_ids),
        ignore_eos=True,  # the stop tokens are ours, not the generation config's
        logprobs=0,  # the sampled token's alone
        flat_logprobs=True,  # numbers in one list instead of a dict and an object a token
        output_kind=RequestOutputKind.FINAL_ONLY,  # nothing is made of a sequence before it has ended
        detokenize=False,
    )


def _build(settings: EngineSettings) -> Any:
    # read at vLLM's import; in-process is what makes sharing memory possible
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if importlib.util.find_spec("flashinfer") is None:  # vLLM samples with it unless told otherwise
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ValueError(f"vLLM cannot be imported ({error}); sampler.kind = 'embedded' does without it") from error
    if settings.can_release_kv_cache and not hasattr(LLM, "release_kv_cache_memory"):
        raise ValueError("sampler.release_kv_cache: this vLLM cannot give back its KV cache alone (0.32 can)")
    is_on_cpu = current_platform.is_cpu()
    with _linear_weights_kept() if is_on_cpu else nullcontext():
        try:
            return LLM(
                model=settings.path,
                skip_tokenizer_init=True,
                trust_remote_code=settings.trust_remote_code,
                dtype=str(settings.dtype).removeprefix("torch."),
                max_model_len=settings.max_sequence_tokens,
                max_num_seqs=settings.max_num_sequences,
                max_num_batched_tokens=max(8192, settings.max_num_sequences, settings.max_sequence_tokens),
                # a prompt cut in two makes the CPU runner rewind the request's generator, which torch cannot on CPU
                enable_chunked_prefill=not is_on_cpu,
                kv_cache_memory_bytes=settings.kv_cache_bytes,
                kv_cache_dtype=settings.kv_cache_dtype,
                gpu_memory_utilization=0.01,  # the bytes above rule; but a GPU less free than this share is refused
                enforce_eager=is_on_cpu,
                enable_prefix_caching=True,
                enable_sleep_mode=settings.can_release_kv_cache,
                logprobs_mode="processed_logprobs",
                generation_config="vllm",  # none of the model's own sampling settings
                use_tqdm_on_load=False,
                distributed_executor_backend="external_launcher" if _num_processes() > 1 else None,
                **_lora_arguments(settings),
            )
        except Exception as error:  # vLLM refuses with any type; every one of them means: not this model, not so
            raise ValueError(
                f"vLLM cannot serve '{settings.path}' with sequences of {settings.max_sequence_tokens} tokens and "
                f"sampler.kv_cache_bytes = {settings.kv_cache_bytes}: {_one_line(error)}; "
                "sampler.kind = 'embedded' does without vLLM"
            ) from error


def _lora_arguments(settings: EngineSettings) -> dict[str, Any]:
    """vLLM's settings for one adapter."""
    if not settings.lora_rank:
        return {}
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": served_rank(settings.lora_rank),
        "lora_target_modules": list(settings.lora_targets),
    }


def _num_processes() -> int:
    """Processes of the default group, of which an earlier engine may have made one of size 1."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _one_line(error: BaseException) -> str:
    """The message on one line, cut where it becomes a listing."""
    text = " ".join((str(error) or repr(error)).split())
    return text if len(text) <= 400 else f"{text[:400]}…"


def _keep_weight(layer: nn.Module, remove_weight: bool = False) -> None:
    """Let a layer compute with its weight itself, instead of packing the weight away."""
    layer.cpu_linear = torch.nn.functional.linear


@contextmanager
def _linear_weights_kept() -> Iterator[None]:
    """While a model loads on CPU, keeps linear weights from being packed into copies that nobody can reach."""
    import vllm.model_executor.layers.linear as linear
    import vllm.model_executor.layers.utils as utils
    import vllm.model_executor.layers.vocab_parallel_embedding as embedding

    name = "dispatch_cpu_unquantized_gemm"  # looked up in `utils`, or imported by name into the others: by version
    modules = [m for m in (utils, linear, embedding) if hasattr(m, name)]
    if utils not in modules:
        raise ValueError(f"this vLLM has no {name}: it moved; tested versions: {', '.join(TESTED_VERSIONS)}")
    originals = {module: getattr(module, name) for module in modules}
    for module in modules:
        setattr(module, name, _keep_weight)
    try:
        yield
    finally:
        for module, original in originals.items():
            setattr(module, name, original)


def _completion(output: Any) -> Completion:
    sample = output.outputs[0]
    token_ids = list(sample.token_ids)
    assert list(sample.logprobs.token_ids) == token_ids, "not one log-prob a sampled token"
    return Completion(token_ids, sample.logprobs.logprobs, sample.finish_reason, output.num_cached_tokens or 0)


def _joined(first: Completion | None, then: Completion) -> Completion:
    """What went on with a completion, as one with it."""
    if first is None:
        return then
    ids, logprobs = first.token_ids + then.token_ids, [*first.logprobs, *then.logprobs]
    return replace(then, token_ids=ids, logprobs=logprobs, num_cached_tokens=first.num_cached_tokens)
