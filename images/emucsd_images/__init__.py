"""Images for the testbed: Linux root filesystems for the host machine and the ISP machine."""
