"""Samplers: prompts in, rollouts out. One protocol; an implementation a file."""
