"""The zero-shot gate: CLIP's accuracy against the paper's, before a public dataset is trained on."""


rule check_zero_shot:
    input:
        features=paths.FEATURES,
    output:
        gate=paths.ZERO_SHOT,
    log:
        "logs/check_zero_shot/{backbone}.{dataset}.log",
    group:
        together("images")
    conda:
        ENVIRONMENT
    resources:
        **asking(asked_by_images),
        gpu=GPU_SLOTS,
    params:
        dataset=dataset_digest,
        templates=template_digest,
        published=PUBLISHED,
    message:
        "compare CLIP's accuracy on {wildcards.dataset} with {wildcards.backbone} to the paper's"
    shell:
        "python -m microclip check-zero-shot {wildcards.dataset}"
        " --backbone {wildcards.backbone} 2>&1 | logged {log}"
