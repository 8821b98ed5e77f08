"""Class descriptions: from shipped or published files, or from a language model."""


rule describe:
    input:
        shipped=ancient(shipped_descriptions),
    output:
        descriptions=paths.DESCRIPTIONS,
    log:
        "logs/describe/{descriptions}.{dataset}.log",
    conda:
        ENVIRONMENT
    params:
        digest=description_digest,
        classes=dataset_digest,
    message:
        "describe the classes of {wildcards.dataset}"
    shell:
        "python -m microclip describe {wildcards.dataset}"
        " --descriptions {wildcards.descriptions} 2>&1 | logged {log}"
