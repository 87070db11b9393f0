"""Environments that were written for other libraries: `verifiers:<taskset>` and `openenv:<app or address>`."""
