"""Your model, your data, your reward, one GPU: python examples/own_reward.py MODEL TRAIN.jsonl TEST.jsonl [STEPS]

MODEL: a Hugging Face folder or hub id, such as Qwen/Qwen3-0.6B. A row of the data: {"prompt": "2+3=", "answer": "5"}.
"""

import re
import sys
from dataclasses import replace

from fastrl import TrainConfig, train


def last_number(prompt: str, completion: str, *, answer: str, **row: object) -> float:
    """1 where the completion's last number is the answer."""
    numbers = re.findall(r"-?\d+", completion)
    return float(numbers[-1:] == [str(answer)])


if __name__ == "__main__":
    model, rows, test, *steps = sys.argv[1:]
    config = TrainConfig()  # NSR, 64 prompts × 8 completions a step; `fastrl settings` explains everything
    config = replace(config, model=replace(config.model, path=model), task=replace(config.task, train=rows, test=test))
    config = replace(config, run=replace(config.run, folder="runs/own", num_steps=int(*steps or ["200"])))
    print(train(config, reward=last_number))  # the run's folder: checkpoints, metrics, rollouts, report.html
