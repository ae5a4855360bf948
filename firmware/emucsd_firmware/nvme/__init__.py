"""The drive's NVMe front: commands of the data path (``dispatch``) and of the control plane (``admin``)."""
