"""Layers that replace torch's own inside a `Model`: exact under every order of `torch.func` transforms."""
