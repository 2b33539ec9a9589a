"""Layers that every order of transforms differentiates exactly."""
