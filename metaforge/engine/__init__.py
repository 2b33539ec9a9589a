"""The one place where a batch of tasks exists: plans, compilation and processes."""
