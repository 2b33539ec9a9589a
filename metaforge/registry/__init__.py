"""Which plugins are installed, and how one is loaded and checked."""
