"""Settings that have no meaning are refused."""

from __future__ import annotations

from typing import Any

import pytest

from microclip.methods.microclip import MicroClipSettings
from microclip.model.saliency import NCutOptions
from microclip.settings import SettingsError, load_method_file, load_variant, validated


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"gamma": 1.5}, "gamma"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"crop_scale": (0.0, 0.5)}, "crop_scale"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"pseudo_label_head": "shared"}, "fixed head"),
        ({"train_head": "cls"}, "needs train_head"),
        ({"pooling": "query-average", "query": "cls"}, "query-average"),
        ({"prior": "frozen", "pseudo_label": "multi", "pseudo_label_head": "shared"}, "frozen"),
        ({"query": "nearest"}, "query"),
        ({"gama": 0.5}, "did you mean 'gamma'"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_one_sentence_says_what_is_wrong(values: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingsError, match=word) as caught:
        validated(MicroClipSettings, values, "here")
    assert "\n" not in str(caught.value)


def test_the_method_file_spells_out_the_defaults() -> None:
    shipped = MicroClipSettings.model_validate(load_method_file("microclip").settings)
    assert shipped == MicroClipSettings()


def test_paper_text_is_what_the_paper_says() -> None:
    paper = MicroClipSettings(**load_variant("microclip", "paper-text"))
    assert (paper.prior, paper.weak_view, paper.fairness) == ("frozen", "center", "paper")
    assert (paper.ncut_threshold, paper.text_weighting) == ("mean", "uniform")
    assert paper.pseudo_label_fusion == "logits"


def test_every_option_of_the_cut_is_a_setting_and_reaches_it() -> None:
    other = NCutOptions(
        tau=0.1, eps=1e-5, threshold="mean", normalize=True, sign="as-computed", min_gap=0.5
    )
    flat = {f"ncut_{name}": value for name, value in vars(other).items()}
    assert MicroClipSettings(**flat).fusion_options().ncut == other
