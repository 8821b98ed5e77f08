"""The datasets of the paper: from whichever files are here to the images of a split."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from microclip import runtime
from microclip.data.layouts.base import load_layout
from microclip.data.public import sources
from microclip.data.public.splits import Split, divide
from microclip.data.vocabulary import load_vocabulary
from microclip.settings import DatasetSettings, PublicSource, load_card
from microclip.settings.datasets import HubRoute, PartsRule, SplitRule

logger = logging.getLogger(__name__)
_LAID_OUT = PartsRule(rule="parts", train=("train",), test=("test",))


@dataclass(frozen=True)
class PublicImages:
    """A split of a public dataset, and where its files came from."""

    split: Split
    found: sources.Found
    rule: SplitRule  # that made the split
    notes: tuple[str, ...]  # what was odd about the files and the split


def read_public(dataset: DatasetSettings) -> PublicImages:
    """Return the images of the split that a dataset's settings name; they are fetched if need be.

    Raises:
        MissingDataError: not here, and not to be had without the user.
        ServiceError: not to be had today.  SettingsError: files that contradict the class list.
    """
    source = dataset.source
    assert isinstance(source, PublicSource)
    card = load_card(source)
    found = sources.locate(source.dataset, card)
    if found is None and card.ask_first:
        raise runtime.MissingDataError(
            f"{source.dataset} is not in {sources.home(source.dataset)}, and its {card.size} are "
            f"not fetched unasked; run `microclip data get {source.dataset}`"
        )
    found = found or sources.get(source.dataset, card)
    names = load_vocabulary(dataset).class_names
    route = next(
        (r for r in card.routes if isinstance(r, HubRoute) and r.layout == found.layout), None
    )
    listing = load_layout(found.layout).read(found.folder, names, route)
    rule, notes = card.splits[source.split], listing.notes
    if found.layout == sources.IMAGE_FOLDER:
        rule = _LAID_OUT
        notes += (f"laid out by hand as train/ and test/, taken as split {source.split!r}",)
    split = divide(listing, rule, folder=found.folder, seed=source.seed)
    notes += split.notes
    for note in notes:
        logger.info("%s: %s", dataset.name, note)
    return PublicImages(split, found, rule, notes)
