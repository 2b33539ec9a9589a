"""Learners that write the support set into a memory."""
