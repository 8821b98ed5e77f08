"""One run: one method on one dataset; `scores.json` is written last."""


rule init_tracking:
    output:
        ready=paths.TRACKING_READY,
    log:
        "logs/init_tracking.log",
    conda:
        "../../environment.yml"
    params:
        python=PYTHON,
        study=STUDY_NAME,
    message:
        "create MLflow's database and the experiment {params.study}"
    shell:
        "{params.python} -m microclip init-tracking --study {params.study} --out {output.ready}"
        " > {log} 2>&1"


rule adapt:
    input:
        tracking=ancient(paths.TRACKING_READY),
        images=run_inputs,
        classifier=paths.CLASSIFIER,
    output:
        scores=paths.SCORES,
    log:
        "logs/adapt/{dataset}.{backbone}.{descriptions}.{method}.{variant}.seed-{seed}.log",
    benchmark:
        "logs/adapt/{dataset}.{backbone}.{descriptions}.{method}.{variant}.seed-{seed}.tsv"
    conda:
        "../../environment.yml"
    resources:
        gpu=1,
    params:
        python=PYTHON,
        settings=run_settings,
        study=STUDY_NAME,
        folder=paths.RUN,
    message:
        "adapt {wildcards.method}/{wildcards.variant} to {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "{params.python} -m microclip run --settings {params.settings:q} --study {params.study}"
        " --out {params.folder} 2>&1 | tee {log}"
