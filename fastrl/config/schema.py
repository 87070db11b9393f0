"""Settings: frozen dataclasses, one a section; TOML on disk, `--section.key value` on the command line."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from fastrl.config.algorithm import AlgorithmConfig
from fastrl.config.annotations import BelowOne, Count, Natural, NonNegative, Positive, Seed, Threshold, TopP
from fastrl.config.evaluation import EvaluationConfig

PathText = Annotated[str, "a path, or a name that is no path"]


class WithPaths:
    """Dataclasses whose paths may begin with ~: it is expanded wherever one is made, from a file or in Python."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            object.__setattr__(self, setting.name, _expanded(getattr(self, setting.name), setting.type is PathText))


def _expanded(value: Any, is_path: bool) -> Any:
    if isinstance(value, tuple):
        return tuple(_expanded(item, is_path) for item in value)
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if is_path and isinstance(value, str) else value


@dataclass(frozen=True)
class ModelConfig(WithPaths):
    """The policy: any Hugging Face causal language model."""

    path: PathText = ""
    """Folder or hub id of the model and its tokenizer."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the weights; auto: bfloat16 on CUDA, float32 on CPU. What the optimizer keeps: optimizer.kind."""
    attention: str = "auto"
    """Packed attention: flash_attention_3 | flash_attention_4 | flash_attention_2 | varlen (PyTorch's own, CUDA) |
    sdpa | eager; auto: the first of these that runs here. Any other of transformers' implementations runs padded."""
    gradient_checkpointing: bool = False
    """Keep only the input of each block and compute the block again in the backward: less memory, more time."""
    compile: bool | Literal["auto"] = "auto"
    """Fuse the decoder blocks with torch.compile (needs a C++ compiler on CPU, Triton on CUDA); takes up to minutes
    when a run starts. true: an error where that fails; auto: on CUDA, and said where it fails."""
    lora_rank: Natural = 0
    """Train low-rank adapters of this rank on a frozen model (peft); 0: all parameters."""
    lora_alpha: Positive = 32.0
    """α: adapters are scaled by α/rank."""
    lora_targets: tuple[str, ...] = ()
    """Names of the linear layers that get an adapter, such as q_proj; empty: all but the head."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy lives; auto: cuda where there is one."""


@dataclass(frozen=True)
class TaskConfig(WithPaths):
    """Where prompts and rewards come from."""

    name: str = "countdown"
    """countdown | countdown-values | countdown-abstain | countdown-confidence | countdown-told |
    countdown-words | math | twenty-questions | tagged-questions | reasoning-gym:<dataset> | verifiers:<taskset> |
    openenv:<module>:<app> | openenv:http://… | module:function (your own reward) | module:class (your own environment)
    | python:<name> (what was given to `train` in Python). `fastrl tasks` lists them."""
    reward_folder: PathText = ""
    """Folder in which the module of module:function is looked for first; empty: that of the config file."""
    reward: str = "verifier"
    """What training makes of the verifier's scores: verifier (nothing) | binary (±1) | ternary (+1 right, 0 abstained,
    −1 wrong) | confidence (RLCR) | majority (TTRL) | coin[:p] | inverted | format | majority-wrong. Evaluations and the
    ledger always take the verifier's."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Rewards that training adds to the task's own, with their weights: `{"style:brevity" = 0.1}`; `verifier` is the
    task's own, 1 unless it is named. Each has metrics of its own; with the weight 0 it has nothing else. Evaluations
    and the ledger ask the task's own alone."""
    train: PathText = ""
    """JSON-lines or Parquet file, a folder of them or of `Dataset.save_to_disk`, or a Hugging Face dataset id, the last
    two with `:split` if you like; empty: the task's own generator (countdown, twenty-questions, tagged-questions,
    reasoning-gym)."""
    validation: PathText = ""
    """The same for choosing checkpoints and settings; empty: the generator's own split, or none."""
    test: PathText = ""
    """The same for the numbers that are reported; empty: the generator's own split, or none."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of columns in the data: `{prompt = "question", answer = "solution"}` reads `question` as the prompt and
    hands `solution` to the reward as `answer`; empty: they have the names that the task looks for."""
    template: str = "auto"
    """Prompt template: none | chat | qwen | qwen3-no-thinking | llama | simple; auto: the task's default, and chat
    where prompts are messages or a system prompt has no place in it."""
    system_prompt: str = ""
    """What the system says before the question; empty: what the template does (qwen and llama: "You are a helpful
    assistant."). Messages that begin with a system message of their own keep that. none and simple have no place."""
    instruction: str = ""
    """What a template appends to the question; empty: the task's own. none and simple append nothing."""
    max_prompt_tokens: Natural = 0
    """Problems with longer prompts are dropped, and counted; 0: one that does not fit is an error that names it."""
    num_train: Natural = 0
    """Training problems: the first n of a file, or so many generated ones; 0: all, or 1000 of an endless generator."""
    num_validation: Natural = 200
    """Validation problems, in the same way."""
    num_test: Natural = 300
    """Test problems, in the same way."""
    seed: Seed = 0
    """Seed of generated problems."""
    max_turns: Count = 16
    """Environments: turns that the model may take. A conversation that is not over by then counts as truncated."""
    max_turn_tokens: Count = 64
    """Environments: longest turn, its stop included. A turn that is cut ends the conversation, truncated; so does one
    that might not fit into what sampler.max_new_tokens, the limit with all replies, leaves."""
    max_reply_tokens: Count = 64
    """Environments: a longer reply is cut, with a warning."""
    stop: tuple[str, ...] = ()
    """Environments: texts that end a turn, besides the end of the sequence; empty: the task's own."""
    timeout_s: Annotated[float, Ge(0.01)] = 5.0
    """Seconds a verifier may spend on one completion; an environment on each turn so far, when it plays them again."""
    memory_mb: Annotated[int, Ge(64)] = 2048
    """Address space of a verifier worker, in MiB."""
    num_workers: Count = 2
    """Verifier processes."""


@dataclass(frozen=True)
class SamplerConfig:
    """How training rollouts are drawn. Training samples by temperature only: the loss knows no top-p or top-k."""

    kind: str = "auto"
    """embedded: `model.generate` of the very module that is trained. vllm: an engine in this process that shares its
    weights. auto: vllm on CUDA where it is installed, else embedded."""
    weights: Literal["auto", "alias", "gather", "copy"] = "auto"
    """vllm: alias: the trainer's parameters are vLLM's tensors, nothing is copied. gather: shards of several processes
    go straight into vLLM's tensors. copy: a second set of weights. auto: gather for sharded parameters, else alias
    where every tensor maps, else copy, with the reason said."""
    kv_cache_bytes: Natural = 0
    """vllm: size of the KV cache; 0: what batch_size sequences can use, within the memory that training leaves."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """vllm: auto: keys and values in the weights' dtype. fp8: in 8 bits (e4m3, not scaled), so that twice as many
    sequences fit (four times beside float32). Its log-probs are then farther from the trainer's: how far is measured
    before the first update, `algorithm.importance` corrects for it from 0.02 nats on, and old log-probs are the
    trainer's."""
    release_kv_cache: bool = False
    """vllm on CUDA: give the KV cache's memory back while training (costs its re-allocation each step)."""
    temperature: Positive = 1.0
    """Sampling temperature τ; the loss uses the same τ."""
    max_new_tokens: Count = 256
    """Longest completion, end-of-sequence token included."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, in training and evaluation, and a turn of a conversation (as task.stop does): the
    text stays, is judged, and is trained as it was sampled."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion besides the model's own end of sequence; as that is, they are trained, and no part
    of the text that is judged."""
    batch_size: Natural = 512
    """Sequences generated at once. vllm: 0: as many as the KV cache holds at their longest, at most 1024."""
    top_p: TopP = 1.0
    """Must be 1 in training (evaluation has its own)."""
    top_k: Natural = 0
    """Must be 0 in training (evaluation has its own)."""


@dataclass(frozen=True)
class BatchConfig:
    """Sizes of a training step."""

    prompts_per_step: Count = 64
    """Prompts (groups) a step."""
    rollouts_per_prompt: Count = 8
    """Completions per prompt (group size)."""
    micro_batch_tokens: Annotated[int, Ge(2)] = 16384
    """Tokens (prompt + completion) of one forward-backward: at least those of the longest sequence. But for rounding,
    the result depends on it with the reduction micro-batch-mean alone."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, over float32 masters or, for less memory, on bfloat16 weights with stochastic rounding."""

    kind: Literal["adamw", "adamw-bf16", "adamw-8bit"] = "adamw"
    """adamw: float32 masters and moments. adamw-bf16: no masters; updates of bfloat16 weights are rounded up or down at
    random, right on average. adamw-8bit: the same, and moments in 8 bits. Bytes a parameter beside a bfloat16 weight
    and its gradient: 12, 8, 2.03. The last two need torchao."""
    grad_dtype: Literal["float32", "bfloat16"] = "float32"
    """What gradients accumulate in. bfloat16 (for the kinds without masters) halves them and rounds the sum at every
    micro-batch: a relative error of about 0.1 % × √micro-batches."""
    lr: NonNegative = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after warm-up."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises linearly from 0."""
    beta1: BelowOne = 0.9
    """Decay of the mean of gradients."""
    beta2: BelowOne = 0.999
    """Decay of the mean of their squares."""
    eps: Positive = 1e-8
    """Added to the root of the mean square, below the step."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay: every step shrinks weights by lr × this."""
    max_grad_norm: NonNegative = 1.0
    """Gradients of a larger global norm are scaled down to it; 0: never."""
    reduce_every: Literal["auto", "micro-batch", "update"] = "auto"
    """When several processes (or offloaded shards) sum their gradients. update: once, at the last micro-batch; until
    then each process keeps float32 gradients of the whole model on its device. auto: update where these take at most a
    quarter of the device's memory."""
    offload: bool = False
    """Keep weights, gradients and optimizer states in CPU memory (FSDP2 moves each block to the GPU for its turn)."""


@dataclass(frozen=True)
class RunConfig(WithPaths):
    """The run folder and what goes into it."""

    folder: PathText = "runs/train"
    """Where the run is kept: config.toml, metrics.jsonl, tensorboard/, rollouts/, checkpoints/, eval/."""
    seed: Seed = 0
    """Seed of the order of prompts, of training rollouts, and of whatever else a run draws but evaluations."""
    num_steps: Count = 100
    """Training steps: each draws a batch and makes its updates."""
    checkpoint_every: Count = 50
    """Steps between checkpoints (one is always written at the end and on Ctrl-C or SIGTERM)."""
    keep_last: Count = 2
    """Checkpoints kept besides the best."""
    best_metric: str = "pass_at_k/1"
    """Metric of the validation evaluation by which `checkpoints/best` is chosen (higher is better); mean_reward where
    rewards are not 0 or 1."""
    scored_rollouts: Natural = 64
    """Rollouts a step, a fixed random sample, that are scored for entropy and |Δlogp| and written to rollouts/."""
    rescored_every: Natural = 10
    """Score these rollouts again after the update every n steps, for the change of each token's log-prob; 0: never."""
    rollouts_mib: Natural = 4096
    """Room for rollouts/, in MiB: beyond it the oldest steps are deleted, which is said; 0: no limit."""
    max_nonfinite_steps: Natural = 3
    """Steps in a row without one finite gradient after which the run stops, with a checkpoint of the last good weights;
    0: it never does. Such updates are skipped and counted (update/num_nonfinite)."""
    watchdog_s: NonNegative = 1800.0
    """Seconds without progress after which the run prints the stacks of all threads and exits with status 1; 0: off.
    Longer than the longest single operation: loading a model is not watched, writing one checkpoint is."""
    sinks: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Metric sinks besides metrics.jsonl."""


@dataclass(frozen=True)
class LedgerConfig:
    """Where probability goes during training: exact log-probs of a fixed set of completions, in ledger.jsonl."""

    every: Natural = 0
    """Measure every n steps; 0: never."""
    num_prompts: Count = 16
    """Validation prompts (training prompts where there are none) that are followed."""
    num_samples: Count = 64
    """Completions of the initial policy per prompt; the first `batch.rollouts_per_prompt` are the ones penalised."""
    num_positions: Count = 256
    """Tokens whose whole distributions are followed: so many of correct completions, and as many of penalised ones."""
    top_k: Count = 5
    """Alternatives named for each of the tokens that lost most."""
    gradients: bool = False
    """Measure norm and angle of the gradients of either sign; each costs a backward pass and a set of gradients."""


@dataclass(frozen=True)
class TrainConfig:
    """`fastrl train`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)


@dataclass(frozen=True)
class ScratchConfig:
    """A new model with random weights, for `fastrl warmup` without model.path: a Qwen3 with a character tokenizer."""

    characters: str = "0123456789+-*()=: "
    """The vocabulary besides <pad> and <eos>."""
    hidden_size: Count = 128
    """Width of the hidden states; an even multiple of num_heads."""
    num_layers: Count = 4
    """Transformer blocks."""
    num_heads: Count = 4
    """Attention heads, of keys and values as well."""
    intermediate_size: Count = 384
    """Width of the feed-forward layers."""


@dataclass(frozen=True)
class DemonstrationConfig(WithPaths):
    """Supervised data of `fastrl warmup`."""

    file: PathText = ""
    """JSON lines with `prompt` and `completion`; empty: the task's own demonstrations (countdown,
    twenty-questions, tagged-questions)."""
    num_steps: Count = 1600
    """Optimizer steps."""
    batch_size: Count = 256
    """Demonstrations a step."""


@dataclass(frozen=True)
class WarmupConfig(WithPaths):
    """`fastrl warmup`: supervised warm start, the policy loss with A = +1 on given completions."""

    model: ModelConfig = field(default_factory=ModelConfig)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DemonstrationConfig = field(default_factory=DemonstrationConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, schedule="cosine"))
    micro_batch_tokens: Annotated[int, Ge(2)] = 16384
    """Tokens of one forward-backward."""
    seed: Seed = 0
    """Seed of new weights and of the order of demonstrations."""
    output: PathText = "runs/warmup"
    """Folder that receives the model and its tokenizer."""


@dataclass(frozen=True)
class EvalConfig(WithPaths):
    """`fastrl eval`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    output: PathText = "eval.json"
    """Where the evaluation goes; a plot with the same stem lies beside it."""
    correct_threshold: Threshold = 1.0
    """Correct means reward ≥ this."""
    truncated: Literal["wrong", "judged"] = "wrong"
    """Completions cut at max_new_tokens are wrong, or judged like any other."""
    base: PathText = ""
    """An earlier evaluation to compare with: problems newly solved and lost, paired differences."""
