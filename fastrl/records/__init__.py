"""What a run leaves behind: its folder, metrics, rollouts and checkpoints; progress on screen; tables and plots."""
