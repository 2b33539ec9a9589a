"""The reliability campaign: tests that break runs on purpose, one measured row per promise."""
