"""microclip: from class descriptions to the paper's tables. The includes follow the data."""

from snakemake.utils import min_version

min_version("9.20")


# A --configfile with both keys is a study of its own.
if not {"study", "datasets"} <= config.keys():

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/companions.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/descriptions.smk"
include: "workflow/rules/classifiers.smk"
include: "workflow/rules/gate.smk"
include: "workflow/rules/adapt.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/report.smk"


wildcard_constraints:
    **CONSTRAINTS,


report: "workflow/report/workflow.rst"


onstart:
    refuse_storage()
    STARTED.append(time.monotonic())
    PLAN.write()
    start_companions()


onerror:
    close_companions()


onsuccess:
    close_companions()
    logger.info(
        f"{spent()}; tables and scores: results/{STUDY_NAME}; `microclip ui` compares the runs"
    )


rule all:
    default_target: True
    input:
        expand(paths.STUDY_SCORES, study=STUDY_NAME),
        TABLES,
        FIGURES,
        LEDGER,
        REPORT,
