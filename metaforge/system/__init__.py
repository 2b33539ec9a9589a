"""Files, locks, signals and the machine."""
