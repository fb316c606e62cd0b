"""Build and search an index with many workers: processes of this machine, or actors of a Ray cluster.

Two executors keep one interface (`executor.py`); nothing but `on_ray.py` knows Ray, and it is imported where a cluster
is named `ray://...`. Begin with `executor`.
"""

from geoloc_fast.cluster.executor import connect
from geoloc_fast.cluster.sharded_index import ShardedIndex
from geoloc_fast.cluster.shards import ShardMap, cut

__all__ = ["ShardMap", "ShardedIndex", "connect", "cut"]
