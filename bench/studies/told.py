"""Tier 9: a policy that is told what was wrong (Critique-GRPO), or what would have been right (SDPO beside NSR).

All begin from the model of configs/critique-warmup.toml, which reads and writes critiques; one update a batch, so that
the shaping of second tries is exact and nothing is clipped. The learning rate is not from a sweep: 3e-5 for all.
"""

from fastrl.tasks.countdown_told import ANSWER, HINT, QUESTION, RIGHT, WRONG

TOLD = {
    "task.name": "countdown-told",
    "algorithm.surrogate": "reinforce",
    "optimizer.lr": 3e-5,
    "algorithm.updates_per_batch": 1,
    "evaluation.num_samples": 64,
}
WORDS = {
    "algorithm.critique.right": RIGHT,
    "algorithm.critique.wrong": WRONG,
    "algorithm.critique.answer": ANSWER,
    "algorithm.critique.question": QUESTION,
    "algorithm.critique.hint": HINT,
}
GROUPED = {"algorithm.objective": "dr-grpo", "algorithm.reduction": "constant"}
CRITIQUE = {"alone": GROUPED, "redraw": GROUPED | {"algorithm.refiner": "redraw"}} | {
    f"critique-{critic}": GROUPED | WORDS | {"algorithm.refiner": "critique", "algorithm.critique.critic": critic}
    for critic in ("verdict", "rules", "model", "answer")
}
SIBLING = HINT.replace("{completion}", "{solution}").replace("{critique}", RIGHT)
LEDGER = {"ledger.every": 15, "ledger.num_samples": 64}
DIRECTED = LEDGER | {"algorithm.signals": ("self-distillation",), "algorithm.self_distillation.hint": SIBLING}
MOVING = DIRECTED | {"algorithm.self_distillation.teacher": "policy"}
DIRECTION = {
    "nsr": LEDGER | {"algorithm.objective": "nsr"},
    "directive": DIRECTED | {"algorithm.objective": "none"},
    "nsr-directive": DIRECTED | {"algorithm.objective": "nsr"},
    "nsr-directive-0.1": DIRECTED | {"algorithm.objective": "nsr", "algorithm.self_distillation.weight": 0.1},
    "moving-directive": MOVING | {"algorithm.objective": "none"},
    "nsr-moving-directive": MOVING | {"algorithm.objective": "nsr"},
    "nsr-moving-directive-0.1": MOVING | {"algorithm.objective": "nsr", "algorithm.self_distillation.weight": 0.1},
}
