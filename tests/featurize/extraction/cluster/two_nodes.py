"""A cluster of two nodes on loopback; a line of input kills the second, the end of input all.

python two_nodes.py FOLDER
"""

import os
import sys
from pathlib import Path

STORE_BYTES = 200 << 20


def main() -> None:
    os.environ["RAY_TMPDIR"] = sys.argv[1]
    Path(sys.argv[1], "ray").mkdir()  # the cluster's address is written there
    from ray.cluster_utils import Cluster

    head = {"include_dashboard": False}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES, **head},
    )
    second = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
