"""The settings of a run, and where each of them comes from."""
