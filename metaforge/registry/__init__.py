"""Which plugins are installed, how the class of one is imported, and whether it keeps the contract of its kind."""
