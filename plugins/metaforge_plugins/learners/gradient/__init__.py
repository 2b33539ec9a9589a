"""Learners that adapt by following gradients."""
