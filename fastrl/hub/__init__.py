"""A checkpoint for others: the model card with its evaluation, and the push to the Hugging Face hub."""
