"""What rules read, and what names it: functions of wildcards; no science."""

from microclip.measure import published


def spec_of(wildcards):
    """Return the run that the wildcards name."""
    return study.RunSpec(**{**dict(wildcards), "seed": int(wildcards.seed)})


def run_settings(wildcards):
    """Return the resolved settings of a run as JSON."""
    return STUDY.settings_json(**wildcards)


def run_inputs(wildcards):
    """Return what a run reads: images for a method that looks at them, else frozen embeddings."""
    reads = study.reads_of(wildcards.method)
    return paths.STORE if reads == "images" else paths.FEATURES


def zero_shot_gate(wildcards):
    """Return the check of CLIP's accuracy that a run waits for, where the paper prints one."""
    dataset = settings.load_dataset(wildcards.dataset)
    printed = published.figure(dataset, wildcards.backbone)
    return [] if printed is None else paths.ZERO_SHOT


def run_weights(wildcards):
    """Return the scores of the run whose weights this one only tests in another way, if any."""
    other = STUDY.trained_by(spec_of(wildcards))
    return [] if other is None else str(other.folder / paths.RUN_SCORES)


def weights_option(wildcards, input):
    """Return the option that names that run's folder."""
    return f"--weights-from {Path(input.weights).parent}" if input.weights else ""


def gpu_slots(wildcards):
    """Return 1; 0 where a local job would find no GPU, so that CPUs alone limit the jobs."""
    return int(HAS_GPU or not workflow.local_exec)


def selection_digest(wildcards):
    """Return what names the part of the study that a table or figure shows, and the paper's numbers."""
    return settings.digest(
        [
            PLANNED["tables"].get(wildcards.get("table")),
            PLANNED["figures"].get(wildcards.get("figure")),
            PUBLISHED,
        ]
    )


def report_digest(wildcards):
    """Return what names everything that a study's page tells beside its scores."""
    told = {key: PLANNED[key] for key in ("title", "holes", "tables", "figures")}
    return settings.digest({**told, "published": PUBLISHED})


def dataset_digest(wildcards):
    """Return what names a dataset's images: its settings, and the drawings they are made of."""
    dataset = settings.load_dataset(wildcards.dataset)
    return settings.digest([dataset.identity(), runtime.dataset_files(dataset)])


def description_digest(wildcards):
    """Return what names the texts of a dataset: templates, who describes it, the file or prompts."""
    dataset = settings.load_dataset(wildcards.dataset)
    written = settings.load_descriptions(wildcards.descriptions)
    return settings.digest(descriptions.identity(dataset, written))


def template_digest(wildcards):
    """Return what names a dataset's prompt templates."""
    return settings.digest(settings.load_dataset(wildcards.dataset).templates)


def backbone_digest(wildcards):
    """Return what names a backbone: its settings and weights."""
    backbone = settings.load_backbone_settings(wildcards.backbone)
    return settings.digest(
        [backbone.model_dump(mode="json"), runtime.backbone_files(backbone)]
    )


def shipped_descriptions(wildcards):
    """Return the file that descriptions are taken from, if one is; the job says what is missing."""
    dataset = settings.load_dataset(wildcards.dataset)
    written = settings.load_descriptions(wildcards.descriptions)
    if written.asks or descriptions.is_remote(dataset, written):
        return []
    source = descriptions.source_file(dataset, written)
    if not source.is_file():
        return []
    return os.path.relpath(source) if source.is_relative_to(Path.cwd()) else str(source)
