"""One run, from its first step to a resume."""
