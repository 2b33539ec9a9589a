"""Computes the meta-gradients and test scores of a batch of tasks: plans, chunks, compilation and several processes."""
