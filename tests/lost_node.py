"""Runs ``uid-run`` on a cluster of two nodes of this machine, and kills the processes of one in the middle.

python tests/lost_node.py in -o out ...: the arguments of ``uid-run`` but the cluster; out is the output folder.
"""

import subprocess
import sys
import time
from pathlib import Path

from uid.serve.ray_session import set_environment

BEFORE = 5  # outputs
WAIT = 300.0  # seconds; ends what hangs


def main() -> int:
    set_environment(local=True)
    from ray.cluster_utils import Cluster  # reads the environment

    words = sys.argv[1:]
    out = Path(words[words.index("-o") + 1])
    node: dict[str, object] = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        other = cluster.add_node(num_cpus=1)
        run = subprocess.Popen([sys.executable, "-m", "uid", *words, "--cluster", cluster.address])
        end = time.monotonic() + WAIT
        while len([*out.glob("[!.]*")]) < BEFORE:
            assert run.poll() is None, "the run ended before the kill"
            assert time.monotonic() < end
            time.sleep(0.01)
        cluster.remove_node(other, allow_graceful=False)
        return run.wait(WAIT)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    sys.exit(main())
