"""Autograd functions whose derivatives of every order are written out, and which `vmap` computes in one call."""
