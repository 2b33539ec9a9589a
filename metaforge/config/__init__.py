"""The settings of a run: read from files and the command line, merged with the defaults, and validated."""
