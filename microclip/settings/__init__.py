"""Models of everything under `config/`; a module is imported when one of its names is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microclip.settings.base import Frozen as Frozen
    from microclip.settings.base import Name as Name
    from microclip.settings.base import check_device as check_device
    from microclip.settings.base import digest as digest
    from microclip.settings.base import known as known
    from microclip.settings.base import load_named as load_named
    from microclip.settings.base import read_yaml as read_yaml
    from microclip.settings.base import validated as validated
    from microclip.settings.datasets import DatasetCard as DatasetCard
    from microclip.settings.datasets import DatasetSettings as DatasetSettings
    from microclip.settings.datasets import FolderSource as FolderSource
    from microclip.settings.datasets import HubRoute as HubRoute
    from microclip.settings.datasets import IconSource as IconSource
    from microclip.settings.datasets import PublicSource as PublicSource
    from microclip.settings.errors import SettingsError as SettingsError
    from microclip.settings.llms import DescriptionSettings as DescriptionSettings
    from microclip.settings.study import BackboneSettings as BackboneSettings
    from microclip.settings.study import CardSettings as CardSettings
    from microclip.settings.study import MethodFile as MethodFile
    from microclip.settings.study import ReportSelection as ReportSelection
    from microclip.settings.study import RunGrid as RunGrid
    from microclip.settings.study import StudySettings as StudySettings
    from microclip.settings.study import VariantFile as VariantFile
    from microclip.settings.study import load_backbone_settings as load_backbone_settings
    from microclip.settings.study import load_card as load_card
    from microclip.settings.study import load_card_of_gpu as load_card_of_gpu
    from microclip.settings.study import load_dataset as load_dataset
    from microclip.settings.study import load_descriptions as load_descriptions
    from microclip.settings.study import load_method_file as load_method_file
    from microclip.settings.study import load_study as load_study
    from microclip.settings.study import load_variant as load_variant
    from microclip.settings.study import variant_file as variant_file
    from microclip.settings.study import variants_of as variants_of

_MODULES = {
    "base": (
        "Frozen",
        "Name",
        "check_device",
        "digest",
        "known",
        "load_named",
        "read_yaml",
        "validated",
    ),
    "datasets": (
        "DatasetCard",
        "DatasetSettings",
        "FolderSource",
        "HubRoute",
        "IconSource",
        "PublicSource",
    ),
    "errors": ("SettingsError",),
    "llms": ("DescriptionSettings",),
    "study": (
        "BackboneSettings",
        "CardSettings",
        "MethodFile",
        "ReportSelection",
        "RunGrid",
        "StudySettings",
        "VariantFile",
        "load_backbone_settings",
        "load_card",
        "load_card_of_gpu",
        "load_dataset",
        "load_descriptions",
        "load_method_file",
        "load_study",
        "load_variant",
        "variant_file",
        "variants_of",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that the command line builds only the models it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
