"""When a run has diverged: its gradients are not finite any more, so nothing it does from here on is training."""


class DivergedError(RuntimeError):
    """Several steps in a row had no finite gradient. The weights are those before the first of them."""


class Divergence:
    """Counts steps in a row whose every update was skipped because its gradient was not finite; limit 0: only counts.

    A step without any update (no rollout carries gradient) neither counts nor ends the row.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.num_steps = 0

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Take in the metrics of a step's update; DivergedError when the row has reached the limit."""
        if metrics["update/num_updates"]:
            self.num_steps = 0
        elif metrics["update/num_nonfinite"]:
            self.num_steps += 1
        if self.limit and self.num_steps >= self.limit:
            raise DivergedError(
                f"no gradient was finite in the last {self.num_steps} steps with one (run.max_nonfinite_steps = "
                f"{self.limit}); the weights have not moved since. In metrics.jsonl look at reward/mean, grad_norm, "
                f"ratio/mean, mismatch/max_abs and lr before step {step}, in rollouts/step-{step:06d}.jsonl.gz at "
                "rewards and log-probs: usual causes are rewards of huge size, a learning rate too high, and bfloat16 "
                "overflow"
            )
