"""The tunnel's relay: frames wait in a ring of bytes each way, whoever waits for frames or for room in a line each.

It knows no NVMe: who waits is a number of the caller's.
"""
