"""The verifier: worker processes in which rewards judge completions, because model output is untrusted.

Imports go from right to left: faults, verdict ← worker ← batch, process, keeper ← pool. A keeper starts each worker.
"""
