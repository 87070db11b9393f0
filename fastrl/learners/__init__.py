"""Signals with weights of their own, which learn beside the policy."""
