"""TCP/IP over NVMe: the two ends of the tunnel."""
