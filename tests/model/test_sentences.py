"""Text embeddings by sentence: the same bits from any batch, and from the store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor

from microclip.model import embeddings, sentences
from microclip.model.backbone import Backbone, from_open_clip
from microclip.model.sentences import SentenceStore, encode, encode_classes
from microclip.settings import load_backbone_settings
from tests.fixtures.project import BACKBONE

LINE = "a picture of the round red disc with four long blue bars on it and a small tail "
TEXTS = [" ".join((5 * LINE).split()[start : 4 * start + 1]) for start in range(17)]


@pytest.fixture(scope="module")
def tower() -> Backbone:
    """A tower with CLIP's context, so that texts have several lengths."""
    torch.manual_seed(0)
    text = {**BACKBONE["text_cfg"], "context_length": 77, "width": 64}
    return from_open_clip(CLIP(**{**BACKBONE, "text_cfg": text}))


class Counted:
    """Stands before a tower and counts the batches and sentences that it encodes."""

    def __init__(self, tower: Backbone, device: str = "cpu") -> None:
        self.tower, self.device, self.shapes = tower, torch.device(device), list[Any]()
        self.tokenize, self.text_lengths = tower.tokenize, tower.text_lengths
        self.embedding_dim, self.fails_at = tower.embedding_dim, -1

    def encode_tokens(self, tokens: Tensor, *, normalize: bool) -> Tensor:
        if len(self.shapes) == self.fails_at:
            raise KeyboardInterrupt
        self.shapes.append((len(tokens), int(self.text_lengths(tokens).max())))
        return self.tower.encode_tokens(tokens, normalize=normalize)


def counted(tower: Backbone, device: str = "cpu") -> Any:
    return Counted(tower, device)


def rows(tower: Any, texts: Sequence[str], store: SentenceStore | None = None) -> Tensor:
    return encode(tower, texts, store).raw


def test_a_text_read_to_its_end_has_the_embedding_of_its_whole_context(tower: Backbone) -> None:
    tokens = tower.tokenize(TEXTS)
    assert set(tower.text_lengths(tokens).tolist()) == {16, 24, 32, 48, 77}
    whole = tower.model.encode_text(tokens)  # type: ignore[operator]
    torch.testing.assert_close(rows(tower, TEXTS), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_a_tower_that_looks_behind_the_end_reads_its_whole_context(text: dict[str, Any]) -> None:
    network = CLIP(
        **{**BACKBONE, "text_cfg": {**BACKBONE["text_cfg"], "context_length": 40, **text}}
    )
    tokens = from_open_clip(network).tokenize(["a disc"])
    assert from_open_clip(network).text_lengths(tokens).tolist() == [40]


def test_a_sentence_has_the_same_bits_alone_among_others_and_from_the_store(
    tower: Backbone, tmp_path: Path
) -> None:
    store = SentenceStore(tmp_path / "store")
    together = rows(tower, TEXTS)
    assert torch.equal(rows(tower, TEXTS[::-1]), together.flip(0))
    for text, row in zip(TEXTS, together, strict=True):
        assert torch.equal(rows(tower, [text])[0], row)
    rows(tower, TEXTS[:5], store)
    assert torch.equal(rows(tower, TEXTS, store), together)  # some from the store
    assert torch.equal(rows(tower, TEXTS, store), together)  # all from the store


def test_batches_have_few_shapes(tower: Backbone) -> None:
    on_cpu, on_gpu = counted(tower), counted(tower, "cuda")
    encode(on_cpu, TEXTS)
    encode(on_cpu, [f"{n} bars" for n in range(70)])
    assert {shape[0] for shape in on_cpu.shapes} == {32}
    assert {shape[1] for shape in on_cpu.shapes} <= {16, 24, 32, 48, 77}
    encode(on_gpu, TEXTS)
    assert {shape[0] for shape in on_gpu.shapes} == {256}


def test_no_sentence_is_encoded_twice(tower: Backbone, tmp_path: Path) -> None:
    seen, store = counted(tower), SentenceStore(tmp_path / "store")
    encode(seen, ["a disc", "a bar", "a disc"], store)
    assert len(seen.shapes) == 1
    encode(seen, ["a bar", "a disc"], store)
    assert len(seen.shapes) == 1
    encode(seen, ["a bar", "a tail"], store)
    assert len(seen.shapes) == 2
    found = encode(seen, ["a tail", "round " * 90, "a bar"], store)
    again = encode(seen, ["a tail", "round " * 90, "a bar"], store)
    assert found.is_cut.tolist() == again.is_cut.tolist() == [False, True, False]
    assert len(seen.shapes) == 3


def test_what_was_encoded_before_an_interruption_is_kept(
    tower: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentences, "_CHUNK", 2)
    texts, store = [f"{n} bars" for n in range(6)], SentenceStore(tmp_path / "store")
    seen = counted(tower)
    seen.fails_at = 2
    with pytest.raises(KeyboardInterrupt):
        encode(seen, texts, store)
    seen.fails_at = -1
    assert torch.equal(rows(seen, texts, store), rows(tower, texts))
    assert len(seen.shapes) == 3


def test_jobs_that_write_at_the_same_time_share_one_store(tower: Backbone, tmp_path: Path) -> None:
    store = SentenceStore(tmp_path / "store")
    shares = [TEXTS[:9], TEXTS[4:], TEXTS[::2], TEXTS[1::2]]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda texts: rows(tower, texts, store), shares))
    for texts, own in zip(shares, found, strict=True):
        assert torch.equal(own, rows(tower, texts))
    seen = counted(tower)
    assert torch.equal(rows(seen, TEXTS, store), rows(tower, TEXTS))
    assert not seen.shapes


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_file_is_removed_and_its_sentences_encoded_again(
    tower: Backbone, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = SentenceStore(tmp_path / "store")
    expected = rows(tower, TEXTS, store)
    (path,) = store.folder.iterdir()
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 1
    path.write_bytes(bytes(whole[: len(whole) // 2] if damage == "cut" else whole))
    assert torch.equal(rows(tower, TEXTS, store), expected)
    assert "is damaged and was removed" in caplog.text
    (path,) = store.folder.iterdir()  # written anew


def test_a_long_job_says_how_far_it_is(
    tower: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = SentenceStore(tmp_path / "store")
    encode(tower, ["a disc"], store)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sentences, "_QUIET_S", 0.0)
    encode(tower, [*(f"{n} bars" for n in range(40)), "a disc"], store)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("encoded 32 of 40 sentences (1 were stored), about ")
    assert lines[1].startswith("encoded 40 of 40 sentences")


def test_classes_get_their_own_sentences_and_an_empty_class_none(tower: Backbone) -> None:
    parts, n_cut = encode_classes(tower, [TEXTS[:2], [], TEXTS[2:5]])
    assert [len(part) for part in parts] == [2, 0, 3]
    assert torch.equal(torch.cat(parts), rows(tower, TEXTS[:5]))
    assert n_cut == 0
    assert encode(tower, []).raw.shape == (0, 16)


@pytest.mark.usefixtures("project")
def test_other_weights_devices_and_versions_have_a_store_of_their_own(
    tower: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone_settings("tiny")
    first = embeddings.sentence_store(backbone, tower).folder
    assert embeddings.sentence_store(backbone, tower).folder == first
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    on_gpu = embeddings.sentence_store(backbone, counted(tower, "cuda")).folder
    monkeypatch.setattr(torch, "__version__", "9.0")
    later = embeddings.sentence_store(backbone, tower).folder
    monkeypatch.setattr(embeddings, "backbone_key", lambda _: "other weights")
    assert len({first, on_gpu, later, embeddings.sentence_store(backbone, tower).folder}) == 4
