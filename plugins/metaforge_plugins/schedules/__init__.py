"""Built-in schedules of the outer learning rate."""
