"""Processes that work beside the jobs, from the first to the last; no science."""

import atexit
import time

from microclip import warm
from microclip.tracking import mirror

COMPANIONS = {}
STARTED = []  # when the first job could start


def start_companions():
    """Start the mirror, which shows runs in MLflow, and the process that local jobs fork from."""
    COMPANIONS["mirror"] = mirror.start(
        [spec.folder for spec in STUDY.runs], "--study", STUDY_NAME
    )
    os.environ.update(MICROCLIP_MIRROR=str(COMPANIONS["mirror"].pid))
    if workflow.local_exec:
        COMPANIONS["warm"] = warm.start()


def warm_node():
    """Start a process on a cluster's node, that the jobs of the group fork from which runs there."""
    companion = warm.start()
    if companion is not None:
        atexit.register(companion.close, wait_s=10)


if workflow.remote_exec and not IS_CLUSTER and "--local-groupid" in sys.argv:
    warm_node()


def close_companions():
    """Wait until MLflow has what the jobs wrote; `microclip sync` copies what it lacks then."""
    for companion in filter(None, COMPANIONS.values()):
        companion.close(wait_s=600)


def spent():
    """What the workflow took: wall time, and CPU time of all its processes."""
    used = os.times()  # of this process, and of its children that have ended
    cpu = used.user + used.system + used.children_user + used.children_system
    wall = time.monotonic() - STARTED[0]
    return f"took {runtime.duration(wall)}, {runtime.duration(cpu)} of CPU time"
