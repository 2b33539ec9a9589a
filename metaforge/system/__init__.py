"""What the framework needs of the operating system: files, locks, signals, devices and threads."""
