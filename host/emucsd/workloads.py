"""Where ``emucsd.traces`` was before."""

from emucsd.traces import *  # noqa: F403
