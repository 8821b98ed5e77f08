"""Processes that work beside the jobs, from the first to the last; no science."""

from microclip import warm
from microclip.tracking import mirror

COMPANIONS = {}


def start_companions():
    """Start the mirror, which shows runs in MLflow, and the process that local jobs fork from."""
    COMPANIONS["mirror"] = mirror.start(
        [spec.folder for spec in STUDY.runs], "--study", STUDY_NAME
    )
    os.environ["MICROCLIP_MIRROR"] = str(COMPANIONS["mirror"].pid)
    if workflow.local_exec:
        COMPANIONS["warm"] = warm.start()


def close_companions():
    """Wait until MLflow has what the jobs wrote; `microclip sync` copies what it lacks then."""
    for companion in filter(None, COMPANIONS.values()):
        companion.close(wait_s=600)
