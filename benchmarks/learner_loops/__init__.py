"""Plain loops: the loss of one task by each method of the gradient family, as one writes it in plain PyTorch.

Networks are called by `functional_call`, inner gradients come from `torch.autograd.grad`, and nothing of MetaForge's
inner loop is used. Nothing is computed twice or needlessly: first-order methods build no graph of their gradients, and
ANIL computes the features of a task once.
"""
