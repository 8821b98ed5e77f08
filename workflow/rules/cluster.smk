"""What a cluster's scheduler is asked for: memory, minutes, groups. One machine asks for nothing."""

from microclip.measure import demands

N_CORES = 4  # beside a GPU: processes that make strong views, or decode images
DEMANDS = demands.Demands(STUDY) if IS_CLUSTER else None


def asking(demand):
    """The resources of a rule, from a function that gives a job's demand."""
    if DEMANDS is None:
        return {}
    return {
        "mem_mb": lambda wildcards, attempt: demand(wildcards, attempt).memory_mb,
        "runtime": lambda wildcards, attempt: demand(wildcards, attempt).minutes,
    }


def asked_by_run(wildcards, attempt):
    """The demand of a run."""
    return DEMANDS.of_run(spec_of(wildcards), attempt)


def asked_by_texts(wildcards, attempt):
    """The demand of class vectors."""
    return DEMANDS.of_texts(
        wildcards.dataset, wildcards.backbone, wildcards.descriptions, attempt
    )


def asked_by_images(wildcards, attempt):
    """The demand of a job that reads all images of a dataset, with a backbone or without."""
    backbone = wildcards.get("backbone") or STUDY.names("backbone")[0]
    return DEMANDS.of_images(wildcards.dataset, backbone, attempt)


def cores_of_run(wildcards):
    """CPU cores of a run: those that only read frozen embeddings make no views."""
    return 1 if study.reads_of(wildcards.method) == "embeddings" else N_CORES


def cores(number):
    """The cores that a job asks a cluster for, and has there; on one machine, one job has one."""
    return number if IS_CLUSTER or workflow.remote_exec else 1


def together(group):
    """The group whose jobs a cluster gets as one; None on one machine, which has no queue."""
    return group if IS_CLUSTER else None


def group_of_run(wildcards):
    """Runs that only read frozen embeddings train nothing that takes long, so they go together."""
    return "frozen" if study.reads_of(wildcards.method) == "embeddings" else None


def refuse_storage():
    """Stop before the first job if files would be kept by a storage plugin."""
    kept_by = workflow.storage_settings.default_storage_provider
    if kept_by is not None:
        raise WorkflowError(
            f"storage plugin {kept_by!r} gives files other names than microclip's rules use; run the "
            "study on a disk that all jobs share: docs/cluster.md"
        )


# These need the internet, which a cluster's nodes often lack.
localrules:
    fetch_dataset,
    describe,
