"""Scores of a study in one file, and the tables made of it."""


rule collect_scores:
    input:
        scores=SCORES,
    output:
        table=paths.STUDY_SCORES,
    log:
        "logs/collect_scores/{study}.log",
    conda:
        "../../environment.yml"
    params:
        runs=settings.digest(STUDY.plan()),
    message:
        "collect the scores of study {wildcards.study}"
    shell:
        "python -m microclip collect-scores --study {wildcards.study}"
        " --out {output.table} 2>&1 | tee -i {log}"


rule tabulate:
    input:
        scores=paths.STUDY_SCORES,
        settings="config/tables/{table}.yaml",
    output:
        csv=report(
            "results/{study}/tables/{table}.csv",
            caption="../report/table.rst",
            category="Tables",
            labels={"study": "{study}", "table": "{table}"},
        ),
        md="results/{study}/tables/{table}.md",
        tex="results/{study}/tables/{table}.tex",
    log:
        "logs/tabulate/{study}.{table}.log",
    conda:
        "../../environment.yml"
    message:
        "tabulate {wildcards.table} of study {wildcards.study}"
    shell:
        "python -m microclip tabulate {wildcards.table} --study {wildcards.study}"
        " 2>&1 | tee -i {log}"


rule tables:
    input:
        TABLES,
