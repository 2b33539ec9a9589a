"""Campaigns that take longer than a test: each has a make target and leaves a results file written by the program."""
