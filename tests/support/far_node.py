"""One more node for a Ray on this machine, until standard input closes. Run by path: far_node.py ADDRESS"""

from __future__ import annotations

import sys

from ray._private.node import Node
from ray._private.parameter import RayParams

if __name__ == "__main__":
    parameters = RayParams(
        gcs_address=sys.argv[1],
        num_cpus=1,
        resources={"far": 1},
        node_ip_address="127.0.0.1",
        object_store_memory=128 * 2**20,
        include_log_monitor=False,
        min_worker_port=0,
        max_worker_port=0,
    )
    node = Node(parameters, head=False, shutdown_at_exit=False, spawn_reaper=False)
    sys.stdin.read()
    node.kill_all_processes(check_alive=False, allow_graceful=False)
