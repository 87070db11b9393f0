"""From rewards to the loss: objectives, importance weights, reductions."""
