"""Learners that compare queries with the support set."""
