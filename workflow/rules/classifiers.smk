"""Frozen embeddings: class vectors from sentences (W_LLM), and those of all images."""


rule embed_descriptions:
    input:
        descriptions=paths.DESCRIPTIONS,
    output:
        classifier=paths.CLASSIFIER,
    log:
        "logs/embed_descriptions/{backbone}.{descriptions}.{dataset}.log",
    group:
        together("texts")
    conda:
        ENVIRONMENT
    resources:
        **asking(asked_by_texts),
        gpu=GPU_SLOTS,
    params:
        digest=description_digest,
        backbone=backbone_digest,
    message:
        "embed the descriptions of {wildcards.dataset} with {wildcards.backbone}"
    shell:
        "python -m microclip embed-descriptions {wildcards.dataset}"
        " --backbone {wildcards.backbone} --descriptions {wildcards.descriptions} 2>&1 | logged {log}"


rule encode_images:
    input:
        store=paths.STORE,
    output:
        features=paths.FEATURES,
    log:
        "logs/encode_images/{backbone}.{dataset}.log",
    group:
        together("images")
    conda:
        ENVIRONMENT
    threads: cores(N_CORES)
    resources:
        **asking(asked_by_images),
        gpu=GPU_SLOTS,
    params:
        backbone=backbone_digest,
    message:
        "encode the images of {wildcards.dataset} with {wildcards.backbone}"
    shell:
        "python -m microclip encode-images {wildcards.dataset}"
        " --backbone {wildcards.backbone} 2>&1 | logged {log}"
