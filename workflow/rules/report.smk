"""What people read: tables, figures, the ledger, the page, the mirror in MLflow."""


# No table is called "all"; a group's job, which takes all its inputs to be there, cannot know that.
ruleorder: typeset > tabulate


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
    group:
        together("report")
    conda:
        ENVIRONMENT
    params:
        selection=selection_digest,
    message:
        "tabulate {wildcards.table} of study {wildcards.study}"
    shell:
        "python -m microclip tabulate {wildcards.table} --study {wildcards.study}"
        " 2>&1 | logged {log}"


rule typeset:
    input:
        tables=TABLES,
    output:
        document=paths.ALL_TABLES,
    log:
        "logs/typeset/{study}.log",
    group:
        together("report")
    conda:
        ENVIRONMENT
    message:
        "write one LaTeX document with the tables of study {wildcards.study}"
    shell:
        "python -m microclip typeset --study {wildcards.study} 2>&1 | logged {log}"


rule plot:
    input:
        scores=paths.STUDY_SCORES,
        settings="config/figures/{figure}.yaml",
    output:
        png=report(
            "results/{study}/figures/{figure}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"study": "{study}", "figure": "{figure}"},
        ),
        pdf="results/{study}/figures/{figure}.pdf",
        csv="results/{study}/figures/{figure}.csv",
    log:
        "logs/plot/{study}.{figure}.log",
    group:
        together("report")
    conda:
        ENVIRONMENT
    params:
        selection=selection_digest,
    message:
        "plot {wildcards.figure} of study {wildcards.study}"
    shell:
        "python -m microclip plot {wildcards.figure} --study {wildcards.study}"
        " 2>&1 | logged {log}"


rule ledger:
    input:
        scores=paths.STUDY_SCORES,
        settings=expand("config/tables/{table}.yaml", table=PLAN.tables),
    output:
        csv=report(
            "results/{study}/ledger.csv",
            caption="../report/ledger.rst",
            category="Paper ledger",
            labels={"study": "{study}"},
        ),
        md="results/{study}/ledger.md",
    log:
        "logs/ledger/{study}.log",
    group:
        together("report")
    conda:
        ENVIRONMENT
    params:
        report=report_digest,
    message:
        "compare study {wildcards.study} with the paper"
    shell:
        "python -m microclip ledger --study {wildcards.study} 2>&1 | logged {log}"


rule report:
    input:
        scores=paths.STUDY_SCORES,
        tables=TABLES,
        figures=FIGURES,
        ledger=LEDGER,
    output:
        page=report(
            paths.PAGE,
            caption="../report/page.rst",
            category="Study",
            labels={"study": "{study}"},
        ),
    log:
        "logs/report/{study}.log",
    group:
        together("report")
    conda:
        ENVIRONMENT
    params:
        report=report_digest,
    message:
        "write the page of study {wildcards.study}"
    shell:
        "python -m microclip report --study {wildcards.study} 2>&1 | logged {log}"


rule mirror_study:
    input:
        page=paths.PAGE,
        document=paths.ALL_TABLES,
    output:
        record=paths.STUDY_MIRRORED,
    log:
        "logs/mirror_study/{study}.log",
    group:
        together("report")
    conda:
        ENVIRONMENT
    message:
        "mirror the tables, figures and sweeps of study {wildcards.study} to MLflow"
    shell:
        "python -m microclip mirror-study --study {wildcards.study} 2>&1 | logged {log}"


rule gallery:
    input:
        scores=paths.SCORES,
    output:
        page=paths.RUN_GALLERY,
    log:
        "logs/gallery/{dataset}.{backbone}.{descriptions}.{method}.{variant}.seed-{seed}.log",
    conda:
        ENVIRONMENT
    message:
        "draw the gallery of {wildcards.method}/{wildcards.variant} on {wildcards.dataset}"
    shell:
        "python -m microclip gallery {input.scores} 2>&1 | logged {log}"


rule tables:
    input:
        TABLES,


rule figures:
    input:
        FIGURES,
