"""Tables and models over several drives: docs/traces.md."""

from emucsd.sharding.fleet import Fleet, ShardLost, spread
from emucsd.sharding.session import ShardedSession, ShardedTicket
from emucsd.sharding.table import ShardedTable, ShardedTables

__all__ = ["Fleet", "ShardLost", "ShardedSession", "ShardedTable", "ShardedTables", "ShardedTicket", "spread"]
