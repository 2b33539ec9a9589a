"""Built-in learners that solve a task by a formula."""
