"""This process among others: ranks, seeds, signals, a watchdog."""
