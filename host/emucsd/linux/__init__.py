"""The drive behind Linux's own nvme driver: device nodes, passthrough commands by ioctl and by io_uring.

``ioctl``, ``uring`` and ``nodes`` are the standard library alone; the rest needs NumPy. Nothing here needs Numba.
"""
