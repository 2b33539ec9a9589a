"""Plain loops: the loss of one task by each method, as one writes it in plain PyTorch.

Networks are called by `functional_call`, inner gradients come from `torch.autograd.grad`, and nothing of MetaForge's
inner loop is used. Where torch has a function for a part of a method, such as an LSTM, attention or a linear system, it
is used. Nothing is computed twice or needlessly: first-order methods build no graph of their gradients, ANIL computes
the features of a task once, and all queries of SNAIL follow one sequence of support examples.
"""
