"""Runs, what is said about them, and how it is shown."""
