"""The MLP engine: a graph of fully connected layers, how it is mapped onto an FPGA, and the computed FP32 result.

Control side, plain Python: ``graph`` (layers), ``budget`` (what an FPGA has and what arithmetic costs), ``kernels``
(cycles of a mapping), ``search`` (kernel sizes), ``mapping`` (all of it together). Data plane, compiled: ``gemm``,
``interact``, ``engine``. Nothing here knows NVMe, a session or the lookup engine.
"""
