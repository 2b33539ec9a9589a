"""Whether MetaForge keeps what it promises when things break: one measured row per promise."""
