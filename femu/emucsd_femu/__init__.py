"""How a drive is attached, and how a machine is run on it: vfio-user server, drive process, QEMU."""
