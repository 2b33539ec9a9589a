"""Benchmarks of accuracy and speed: each writes its numbers as JSON records, and a page of docs/ from them."""
