"""One run: adapt one method to one dataset and score it; `scores.json` is written last."""


rule adapt:
    input:
        images=run_inputs,
        classifier=paths.CLASSIFIER,
        weights=run_weights,
        gate=zero_shot_gate,
    output:
        scores=paths.SCORES,
    log:
        "logs/adapt/{dataset}.{backbone}.{descriptions}.{method}.{variant}.seed-{seed}.log",
    benchmark:
        "logs/adapt/{dataset}.{backbone}.{descriptions}.{method}.{variant}.seed-{seed}.tsv"
    group:
        together(group_of_run)
    conda:
        ENVIRONMENT
    threads: cores(cores_of_run)
    resources:
        **asking(asked_by_run),
        gpu=GPU_SLOTS,
    params:
        settings=run_settings,
        folder=paths.RUN,
        weights=weights_option,
    message:
        "adapt {wildcards.method}/{wildcards.variant} to {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "python -m microclip run --settings {params.settings:q} --out {params.folder} {params.weights}"
        " 2>&1 | logged {log}"
