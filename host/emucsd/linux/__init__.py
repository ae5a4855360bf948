"""The drive through Linux's own nvme driver: passthrough by ioctl and io_uring, and extents of files."""
