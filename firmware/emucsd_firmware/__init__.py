"""The drive: controller, FTL, NAND model and lookup engine, without any socket, VM or torch."""
