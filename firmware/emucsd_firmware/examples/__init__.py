"""Worked examples: firmware that a user might write, each complete in one file."""
