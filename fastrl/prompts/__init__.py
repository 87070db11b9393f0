"""Prompts: their tokens, their lengths, their order."""
