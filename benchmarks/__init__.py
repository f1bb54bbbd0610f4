"""Benchmarks. A script imports their shared parts with the root of the checkout on its path."""
