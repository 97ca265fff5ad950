"""Runtimes: a checked plan to a callable."""
