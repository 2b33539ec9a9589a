"""Built-in optimisers of the outer loop."""
