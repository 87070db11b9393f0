"""A run's memory, predicted from its config."""
