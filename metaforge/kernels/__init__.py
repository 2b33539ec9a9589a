"""Functions with hand-written derivatives of every order, for all tasks in one call."""
