"""Evaluation: pass@k of a model, and what differs between models."""
