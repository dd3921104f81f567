"""Holds the nodes of a Ray cluster, and kills them as its standard input says; run as `held_nodes.py OPTIONS`."""

from __future__ import annotations

import json
import os
import sys
from tempfile import TemporaryDirectory

import ray
from ray.cluster_utils import Cluster


def main(options):
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray says goes elsewhere
    if options["version"] is not None:
        ray.__version__ = options["version"]
    with TemporaryDirectory(prefix="rn-") as folder:
        size = {"num_cpus": 1, "object_store_memory": options["store"], "include_dashboard": False}
        head = size | {"temp_dir": folder} | ({"_system_config": options["system"]} if options["system"] else {})
        cluster = Cluster(initialize_head=True, head_node_args=head)
        others = [cluster.add_node(**size) for _ in range(options["count"] - 1)]
        print(json.dumps({"address": cluster.address}), file=out, flush=True)
        for line in sys.stdin:
            node = cluster.head_node if line.strip() == "head" else others.pop()
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            print("killed", file=out, flush=True)
        for node in [*others, cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
