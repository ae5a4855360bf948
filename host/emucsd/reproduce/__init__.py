"""Published figures, measured again: ``emucsd reproduce``. A folder a paper; here is what their reports share."""
