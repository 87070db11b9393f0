"""What is said of PPO with a critic, beside objectives without one, each as a measurement (tier 8)."""

from claims import Claim
from measures import against_base, between, between_at_equal_pass_at_1, entropy, pass_at

PAPER, CRITIC = "paper (2506.01347), PPO", "a critic as baseline"
PPO, GRPO, RLOO, NSR = (f"tier8.{name}" for name in ("ppo", "grpo", "rloo", "nsr"))
NEAR = 0.95  # of the way to the lower of the two final pass@1
CRITIC_CLAIMS = [
    Claim(PAPER, "PPO improves pass@1 over the base", "higher", against_base(PPO, pass_at(1))),
    Claim(PAPER, "PPO is above NSR at k = 1", "higher", between(PPO, NSR, pass_at(1))),
    Claim(PAPER, "NSR is above PPO at k = 64", "higher", between(NSR, PPO, pass_at(64))),
    Claim(
        PAPER,
        "at equal pass@1 NSR is above PPO at k = 64",
        "higher",
        between_at_equal_pass_at_1(NSR, PPO, 64, NEAR),
    ),
    Claim(PAPER, "NSR keeps more entropy than PPO", "higher", between(NSR, PPO, entropy), "nats"),
    Claim(CRITIC, "PPO is GRPO's equal at k = 1", "same", between(PPO, GRPO, pass_at(1))),
    Claim(CRITIC, "and at k = 64", "same", between(PPO, GRPO, pass_at(64))),
    Claim(
        CRITIC, "at equal pass@1 PPO is GRPO's equal at k = 64", "same", between_at_equal_pass_at_1(PPO, GRPO, 64, NEAR)
    ),
    Claim(CRITIC, "PPO is RLOO's equal at k = 1", "same", between(PPO, RLOO, pass_at(1))),
    Claim(CRITIC, "and at k = 64", "same", between(PPO, RLOO, pass_at(64))),
]
