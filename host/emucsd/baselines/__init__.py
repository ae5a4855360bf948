"""Ways to serve a recommendation model, RM-SSD and what it is compared with: same flash, same virtual time.

``costs.toml`` has what the host's own work takes; ``base`` what every baseline is.
"""

from emucsd.baselines.base import KINDS, Baseline
from emucsd.baselines.costs import Costs, Parameter, load_costs, parameters
from emucsd.baselines.embedding import EmbMmio, EmbPageSum, EmbVectorSum
from emucsd.baselines.files import BufferedFiles, SsdM, SsdS
from emucsd.baselines.host import HostMlp
from emucsd.baselines.inference import InDrive, RmSsd, RmSsdNaive
from emucsd.baselines.memory import Dram
from emucsd.baselines.recssd import RecSsd

__all__ = [
    "KINDS",
    "Baseline",
    "BufferedFiles",
    "Costs",
    "Dram",
    "EmbMmio",
    "EmbPageSum",
    "EmbVectorSum",
    "HostMlp",
    "InDrive",
    "Parameter",
    "RecSsd",
    "RmSsd",
    "RmSsdNaive",
    "SsdM",
    "SsdS",
    "load_costs",
    "parameters",
]
