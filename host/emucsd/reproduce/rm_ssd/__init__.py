"""RM-SSD's figures: ``emucsd reproduce rm-ssd``."""
