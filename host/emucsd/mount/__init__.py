"""A drive's namespaces, tables and counters as files (FUSE), for those who have no virtual machine.

    emucsd mount disk0 /tmp/disk0

``/tmp/disk0/ns1`` is the namespace: mkfs, loop mounts and fio work on it. ``docs/mount.md`` is for users.

Three layers: ``serve`` is compiled code between /dev/fuse and a queue pair, and carries reads, writes and flushes of
namespaces; whatever else the kernel asks goes through libfuse and fusepy (``session``) to ``tree``, whose files are in
``nodes``; ``process`` is the program around them.
"""
