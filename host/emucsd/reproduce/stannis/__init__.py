"""Stannis' figures: ``emucsd reproduce stannis``."""
