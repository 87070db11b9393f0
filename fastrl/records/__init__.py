"""What a run leaves behind: the metrics file and its sinks, the progress on screen, tables and plots of evaluations."""
