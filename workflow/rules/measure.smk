"""The scores of a study, in one file."""


rule collect_scores:
    input:
        scores=SCORES,
    output:
        table=paths.STUDY_SCORES,
    log:
        "logs/collect_scores/{study}.log",
    group:
        together("report")
    conda:
        ENVIRONMENT
    params:
        runs=settings.digest(PLANNED["runs"]),
    message:
        "collect the scores of study {wildcards.study}"
    shell:
        "python -m microclip collect-scores --study {wildcards.study}"
        " --out {output.table} 2>&1 | logged {log}"
