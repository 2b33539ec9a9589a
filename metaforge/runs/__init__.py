"""Runs: training, checkpoints, resuming, hooks and the run folder."""
