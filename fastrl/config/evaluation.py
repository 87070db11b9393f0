"""[evaluation]: what is asked of a model beside its training."""

from dataclasses import dataclass, field
from typing import Literal

from fastrl.config.annotations import Count, Natural, NonNegative, Positive, Seed, TopP


@dataclass(frozen=True)
class BeliefConfig:
    """Whether claims follow belief (the Bullshit Index): belief is read from the logits behind a probe."""

    probe: str = ""
    """Text that asks, such as "{problem}\\n{completion}\\nIs this right?": {problem} and {completion} are filled in, no
    template is put around it. Empty: nothing is measured."""
    yes: str = " yes"
    """What follows the probe if the model believes: belief is P(yes) / (P(yes) + P(no))."""
    no: str = " no"
    """What follows it otherwise."""
    claim: str = "answer"
    """What counts as a claim: answer (the verifier reads an answer), confidence (at least ½ is stated; samples that
    state none are left out) or a regular expression between slashes that the completion must match somewhere."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation inside a run and by `fastrl eval`: its own sampling settings."""

    every: Natural = 0
    """Evaluate the validation split every n steps; 0: never during training."""
    split: Literal["train", "validation", "test"] = "test"
    """Split of the evaluation after training and of `fastrl eval`."""
    at_end: bool = True
    """Evaluate `split` when training ends."""
    num_samples: Count = 16
    """Completions per problem: pass@k is reported for k = 1, 2, 4, … up to this."""
    temperature: NonNegative = 1.0
    """Sampling temperature; 0: greedy."""
    top_p: TopP = 1.0
    """Sample from the fewest tokens that together have this probability; 1: from all."""
    top_k: Natural = 0
    """Sample from this many of the likeliest tokens; 0: from all."""
    repetition_penalty: Positive = 1.0
    """Makes tokens that are there already less likely; 1: off."""
    max_new_tokens: Natural = 0
    """Longest completion; 0: the training sampler's limit."""
    seed: Seed = 1234
    """Seed of its completions: every evaluation of a run draws with it."""
    kept_completions: Natural = 4
    """Completions a problem, the first ones drawn, that are kept beside the evaluation's file; 0: none."""
    belief: BeliefConfig = field(default_factory=BeliefConfig)
