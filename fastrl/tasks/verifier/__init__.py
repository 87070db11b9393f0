"""The verifier: worker processes in which rewards judge completions, because model output is untrusted.

Imports go from right to left: faults, worker ← keeper, process ← pool. Each worker process is started by a keeper.
"""
