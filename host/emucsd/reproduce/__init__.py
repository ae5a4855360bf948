"""Published figures, measured again in virtual time: ``emucsd reproduce``."""
