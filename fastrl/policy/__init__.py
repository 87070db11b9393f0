"""The policy: loading a Hugging Face model, one forward for loss and scores, micro-batches, the optimizer."""
