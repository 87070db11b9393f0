"""The rollout: one prompt, one completion, and everything that is learned about it on its way through a step."""

from dataclasses import dataclass, field


@dataclass
class Rollout:
    """Token ids are never re-tokenised: what was sampled is what is trained, the end-of-sequence token included.

    Log-probs, entropy and loss_mask have one entry per completion token; None where nobody computed them. reward is
    None while unscored, or when the verifier broke. Advantage 0: the rollout carries no gradient.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    sampler_logprobs: list[float]
    finish_reason: str  # stop | length
    group: int  # index of the prompt in its batch
    weight_version: int = 0
    loss_mask: list[int] = field(default_factory=list)
    problem_id: str = ""
    prompt_text: str | list[dict[str, str]] = ""
    text: str = ""
    reward: float | None = None  # what the verdict counts as: see `tasks.correctness`
    penalty: float = 0.0  # added to the reward where rewards are compared (≤ 0), never to the verdict itself
    reason: str = ""
    advantage: float = 0.0
    old_logprobs: list[float] | None = None
    ref_logprobs: list[float] | None = None
    trainer_logprobs: list[float] | None = None
    entropy: list[float] | None = None
    importance: list[float] | None = None  # factors of the advantage, one per token; None: 1

    def __post_init__(self) -> None:
        if not self.loss_mask:
            self.loss_mask = [1] * len(self.completion_ids)

    @property
    def num_tokens(self) -> int:
        """Completion tokens that the loss may use."""
        return sum(self.loss_mask)

    @property
    def has_gradient(self) -> bool:
        """The policy term of the loss moves something: an advantage, and tokens to apply it to."""
        return self.advantage != 0 and self.num_tokens > 0

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"


# Carries no gradient; runs where another rank has a micro-batch more, and so has every column that a loss may ask for.
FILLER = Rollout([0], [0], [0.0], "stop", 0, old_logprobs=[0.0], ref_logprobs=[0.0])
