"""The agent: what runs on the Linux inside the drive."""
