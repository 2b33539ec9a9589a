"""Learners that summarise the support set in one forward pass."""
