"""Autograd functions that can be differentiated repeatedly, and that `vmap` computes for all tasks in one call."""
