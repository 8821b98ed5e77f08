"""Text embeddings by sentence: encoded in batches of few shapes, and each only once.

The last bit of an embedding may depend on the shape of its batch, but not on the other sentences
in it. So every batch is filled up to one number of rows and cut to one of a few lengths: a sentence
gets the same bits alone, among others, or from the store. (A CPU's matrix products of 1 to 7 rows
were seen to differ from larger ones, a permutation of the rows or another number of threads never.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from microclip import runtime
from microclip.data.public.downloads import tell
from microclip.model.backbone import Backbone
from microclip.model.weights import tensors_sha256

logger = logging.getLogger(__name__)

FORMAT = 1  # of the stored files; a new number leaves all of them unread
# Rows of a batch. On a CPU few, since a handful of sentences is filled up to as many.
_ROWS_CPU, _ROWS_GPU = 32, 256
_CHUNK = 4096  # sentences that are encoded, then stored: the most that an interruption loses
_QUIET_S = 10.0  # between two lines of progress


@dataclass(frozen=True, eq=False)
class Encoded:
    """Embeddings of sentences as the text tower returns them, on the CPU.

    Attributes:
        raw: one row per sentence, not normalised.
        is_cut: sentences that fill the tower's context, so that their end may be missing.
    """

    raw: Float[Tensor, "text embedding"]
    is_cut: Bool[Tensor, " text"]


class SentenceStore:
    """Embeddings of one text tower in a folder, found by the hash of their sentence.

    Each file is written whole and never changed, under the hash of its content, so that jobs that
    write at the same time cannot disturb each other. What is damaged is dropped and encoded again.
    """

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which need not exist."""
        self.folder = folder

    def find(self, texts: Iterable[str]) -> dict[str, tuple[Tensor, bool]]:
        """Return the row of each stored sentence, and whether it was cut."""
        wanted = {hashlib.sha256(text.encode()).digest(): text for text in texts}
        found: dict[str, tuple[Tensor, bool]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            if len(found) == len(wanted):
                break
            tensors = self._read(path)
            for row, key in enumerate(tensors["sha256"].numpy()) if tensors else ():
                text = wanted.get(key.tobytes())
                if text is not None:
                    found[text] = tensors["raw"][row], bool(tensors["is_cut"][row])
        return found

    def add(self, texts: Sequence[str], encoded: Encoded) -> None:
        """Store the embeddings of `texts` in one file."""
        keys = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
        tensors = {
            "sha256": torch.frombuffer(bytearray(keys), dtype=torch.uint8).reshape(-1, 32),
            "raw": encoded.raw.contiguous(),
            "is_cut": encoded.is_cut.to(torch.uint8),
        }
        sha256 = tensors_sha256(tensors)
        record = {"microclip": json.dumps({"tensors_sha256": sha256})}
        with runtime.atomic_path(self.folder / f"{sha256[:16]}.safetensors") as target:
            target.write_bytes(save(tensors, metadata=record))

    def _read(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors of a stored file; none, and remove it, if it is damaged."""
        try:
            with safe_open(path, framework="pt") as opened:
                stated = json.loads((opened.metadata() or {})["microclip"])["tensors_sha256"]
                tensors = {name: opened.get_tensor(name) for name in ("sha256", "raw", "is_cut")}
            if stated == tensors_sha256(tensors):
                return tensors
        except (SafetensorError, OSError, KeyError, ValueError):
            pass
        logger.warning("%s is damaged and was removed; its sentences are encoded again", path)
        path.unlink(missing_ok=True)
        return {}


def encode(tower: Backbone, texts: Sequence[str], store: SentenceStore | None = None) -> Encoded:
    """Return the embeddings of `texts`; equal sentences, and those in `store`, cost nothing."""
    unique = list(dict.fromkeys(texts))
    known = {} if store is None else store.find(unique)
    rest = [text for text in unique if text not in known]
    progress = _Progress(len(rest), len(unique) - len(rest))
    for start in range(0, len(rest), _CHUNK):
        chunk = rest[start : start + _CHUNK]
        encoded = _encode(tower, chunk, progress)
        if store is not None:
            store.add(chunk, encoded)
        known.update(
            zip(chunk, zip(encoded.raw, encoded.is_cut.tolist(), strict=True), strict=True)
        )
    if not texts:
        return Encoded(torch.empty(0, tower.embedding_dim), torch.zeros(0, dtype=torch.bool))
    return Encoded(
        torch.stack([known[text][0] for text in texts]),
        torch.tensor([known[text][1] for text in texts]),
    )


def encode_classes(
    tower: Backbone, texts: Sequence[Sequence[str]], store: SentenceStore | None = None
) -> tuple[list[Float[Tensor, "_ embedding"]], int]:
    """Return each class's text embeddings, not normalised, and how many texts were cut."""
    found = encode(tower, [text for own in texts for text in own], store)
    parts = torch.split(found.raw, [len(own) for own in texts])
    return list(parts), int(found.is_cut.sum())


class _Progress:
    """Says now and then how many sentences are encoded; a short job says nothing."""

    def __init__(self, total: int, n_known: int) -> None:
        self.total, self.n_known, self.done = total, n_known, 0
        self.started = self.said = time.monotonic()

    def advance(self, n: int) -> None:
        """Count `n` more sentences."""
        self.done += n
        now = time.monotonic()
        if now - self.said < _QUIET_S:
            return
        self.said = now
        left = (now - self.started) / self.done * (self.total - self.done)
        known = f" ({self.n_known:,} were stored)" if self.n_known else ""
        tell(
            f"encoded {self.done:,} of {self.total:,} sentences{known}, about "
            f"{runtime.duration(left)} left"
        )


def _encode(tower: Backbone, texts: list[str], progress: _Progress) -> Encoded:
    """Encode sentences in batches of one length each, filled up to one number of rows."""
    tokens = tower.tokenize(texts)
    lengths = tower.text_lengths(tokens)
    n_rows = _ROWS_CPU if tower.device.type == "cpu" else _ROWS_GPU
    raw: dict[int, Tensor] = {}
    for length in sorted(set(lengths.tolist())):
        rows = (lengths == length).nonzero().flatten()
        for batch in torch.split(rows, n_rows):
            found = tower.encode_tokens(_filled(tokens[batch], n_rows), normalize=False)
            raw.update(zip(batch.tolist(), found[: len(batch)].cpu(), strict=True))
            progress.advance(len(batch))
    # Padded with 0: the last place is taken in a sentence that fills the context.
    return Encoded(torch.stack([raw[row] for row in range(len(texts))]), tokens[:, -1] != 0)


def _filled(tokens: Int[Tensor, "text context"], n_rows: int) -> Int[Tensor, "row context"]:
    """Repeat the last row until there are `n_rows`."""
    return torch.cat([tokens, tokens[-1:].expand(n_rows - len(tokens), -1)])
