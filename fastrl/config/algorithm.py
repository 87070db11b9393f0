"""[algorithm]: how a batch of rollouts becomes updates. What is registered by name brings its settings as a section."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Gt

from fastrl.config.annotations import Count, Natural, NonNegative, OneOf, Threshold
from fastrl.kernels import SURROGATES
from fastrl.learning.factors import FACTORS
from fastrl.learning.objectives import OBJECTIVES
from fastrl.learning.overlong import Overlong
from fastrl.learning.reductions import REDUCTIONS
from fastrl.learning.refiners import REFINERS
from fastrl.learning.sequence_surrogates import SEQUENCE_SURROGATES
from fastrl.learning.signals import SIGNALS

Registered = TypeVar("Registered")


@dataclass(frozen=True)
class ImportanceConfig:
    """Correction for a sampler whose log-probs differ from the trainer's."""

    kind: Literal["auto", "off", "token", "sequence", "masked"] = "auto"
    """token, sequence: weights up to `cap`, one a token or one a completion. masked: completions whose weight is not
    within [1/cap, cap] carry no gradient. auto: token where the difference before the first update is above 0.02 nats a
    token."""
    cap: Annotated[float, Gt(1)] = 2.0
    """Largest importance weight."""


def section_of(name: str) -> str:
    """Key of the section that holds the settings of what is registered under a name."""
    return name.replace("-", "_")


def make_sections(*registries: Mapping[str, type]) -> type:
    """A dataclass with a section for each registered class that has fields. ValueError where two have one key."""
    owners: dict[str, type] = {}
    for name, cls in (entry for registry in registries for entry in registry.items() if fields(entry[1])):
        other = owners.setdefault(section_of(name), cls)
        if other is not cls:
            both = f"{other.__qualname__} and {cls.__qualname__}"
            raise ValueError(f"[algorithm.{section_of(name)}] would hold the settings of {both}: rename one of them")
    sections = [(key, cls, field(default_factory=cls)) for key, cls in owners.items()]
    return make_dataclass("Sections", sections, frozen=True)


ALL_SURROGATES = SURROGATES | SEQUENCE_SURROGATES
OWN = {"importance": ImportanceConfig, "overlong": Overlong}


@dataclass(frozen=True)
class AlgorithmConfig(make_sections(OBJECTIVES, ALL_SURROGATES, SIGNALS, REFINERS, FACTORS, OWN)):
    """Three free choices: where credit comes from (objective and signals), the loss of a token, the tokens' weights."""

    preset: Literal["none", "paper-code"] = "none"
    """paper-code: what the NSR authors' code does: ppo_clip with 0.2 and 0.2, mini-batches cut after dropping, mean
    over the tokens of each micro-batch, which makes the result depend on the micro-batch size."""
    objective: Annotated[str, OneOf(OBJECTIVES, "How rewards become signed advantages.")] = "nsr"
    signals: Annotated[tuple[str, ...], OneOf(SIGNALS, "What adds credit to the objective's, token by token.")] = ()
    refiner: Annotated[str, OneOf(REFINERS, "What becomes of judged rollouts before they get credit.")] = "none"
    factors: Annotated[tuple[str, ...], OneOf(FACTORS, "What multiplies all this credit, one after the other.")] = ()
    surrogate: Annotated[str, OneOf(ALL_SURROGATES, "How the loss of a token depends on its log-prob.")] = "ppo_clip"
    reduction: Annotated[str, OneOf(REDUCTIONS, "Which weight a token's loss has in its update.")] = "token-mean-kept"
    correct_threshold: Threshold = 1.0
    """Sign objectives (psr, nsr, w-reinforce, reinforce): correct means reward ≥ this."""
    updates_per_batch: Count = 1
    """Optimizer steps on each batch of rollouts: as many mini-batches of whole prompts."""
    minibatch_cut: Literal["before-dropping", "after-dropping"] = "before-dropping"
    """Rollouts without credit are dropped. before-dropping: mini-batches are cut first, always `updates_per_batch`.
    after-dropping: ceil(kept rollouts / mini-batch size) of them, the last scaled by its fill."""
    old_logprobs: Literal["auto", "sampler", "recompute"] = "auto"
    """π_old of mini-batches after the first: the sampler's log-probs, or a pass without gradient before any update.
    auto: the sampler's where it shares the trainer's weights, else recompute."""
    kl_coef: NonNegative = 0.0
    """Weight of the k3 KL penalty to the initial policy; 0: no reference model is held. On tokens that the policy drew
    k3 has the value of KL(policy ‖ initial) and the gradient of KL(initial ‖ policy)."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus."""
    truncated: Literal["wrong", "mask", "judged"] = "wrong"
    """Completions cut at max_new_tokens. wrong: reward 0, or their verdict where that is less. mask: no gradient.
    judged: like any other. Evaluations of the run count them in the same way (mask: as judged)."""
    dynamic_sampling_rounds: Natural = 0
    """Further rounds of prompts drawn to replace groups whose rewards are all equal (DAPO); 0: keep such groups."""

    @property
    def kernel_surrogate(self) -> str:
        """What a token pays: the surrogate itself, or reinforce where its weight comes from the whole sequence."""
        return "reinforce" if self.surrogate in SEQUENCE_SURROGATES else self.surrogate


def chosen(algorithm: AlgorithmConfig, registry: Mapping[str, type[Registered]], name: str) -> Registered:
    """What is registered under a name, with the settings of its section, or without any where it has none."""
    settings: Any = getattr(algorithm, section_of(name), None)
    return settings if isinstance(settings, registry[name]) else registry[name]()
