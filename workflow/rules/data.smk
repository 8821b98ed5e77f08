"""Images: rendered or downloaded once, then decoded once."""


rule fetch_dataset:
    output:
        manifest=paths.MANIFEST,
    log:
        "logs/fetch_dataset/{dataset}.log",
    conda:
        ENVIRONMENT
    params:
        digest=dataset_digest,
    message:
        "fetch dataset {wildcards.dataset}"
    shell:
        "python -m microclip fetch-dataset {wildcards.dataset} 2>&1 | logged {log}"


rule store_images:
    input:
        manifest=paths.MANIFEST,
    output:
        store=paths.STORE,
        passport=paths.PASSPORT,
    log:
        "logs/store_images/{dataset}.log",
    group:
        together("images")
    conda:
        ENVIRONMENT
    threads: cores(N_CORES)
    resources:
        **asking(asked_by_images),
    message:
        "decode the images of {wildcards.dataset} and write its split passport"
    shell:
        "python -m microclip store-images {wildcards.dataset} 2>&1 | logged {log}"
