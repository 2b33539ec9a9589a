"""Learners whose weights for a task are the output of a network."""
