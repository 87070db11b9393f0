"""Where probability goes: exact log-probs of a fixed set of completions while a run moves the policy."""
