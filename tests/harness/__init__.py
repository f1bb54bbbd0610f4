"""Helpers of the tests: configurations, worlds of processes, training, commands."""
