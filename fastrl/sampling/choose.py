"""Which sampler runs, and why: one chooser, which `fastrl doctor` can ask too."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fastrl.config import SamplerConfig
from fastrl.policy.model import stop_token_ids
from fastrl.sampling.embedded import EmbeddedSampler
from fastrl.sampling.protocol import Sampler


def choose_sampler(config: SamplerConfig) -> tuple[str, str]:
    """(kind, reason)."""
    if config.kind == "embedded":
        return "embedded", "asked for by sampler.kind"
    return "embedded", "model.generate of the trained module: the only sampler so far"


def ignored_settings(model: PreTrainedModel) -> dict[str, float]:
    """Sampling settings of the model's own generation config that differ from plain sampling: none of them is used."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    own = {name: getattr(model.generation_config, name, None) for name in neutral}
    return {name: value for name, value in own.items() if value is not None and value != neutral[name]}


def build_sampler(config: SamplerConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Sampler:
    """The sampler that `choose_sampler` names, over the model that is trained."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return EmbeddedSampler(
        model, stop_token_ids=stop_token_ids(model, tokenizer), pad_token_id=pad, batch_size=config.batch_size
    )
