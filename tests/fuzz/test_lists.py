"""Lists that people bring: class names, labels, sentences by class, the manifest."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microclip import paths
from microclip.data import manifest, vocabulary
from microclip.own_images import inputs
from microclip.settings.datasets import FolderSource
from microclip.text import mending, prompts, sentence_files
from microclip.text.descriptions import checked
from tests.fuzz.judge import few, judged
from tests.fuzz.strategies import (
    BOMBS,
    LINES,
    TEXTS,
    VALUES,
    dumped,
    encoded,
    mutated,
    mutated_text,
)

LISTS = (
    "fox\nwolf\ncrane (bird)\n",
    "0 fox\n1 wolf\n2 crane\n",
    "- 001. n01440764 tench\n- 002. n01443537 goldfish\n- 003. n15075141 tissue\n",
    "id,class_name\n0,fox\n1,wolf\n2,crane\n",
    "# names\nClasses:\n'fox',\n'wolf',\n'crane'\n",
    '{"0": "fox", "1": "wolf", "2": "crane"}',
    '[{"name": "fox"}, {"name": "wolf"}]',
    "names:\n  0: fox\n  1: wolf\n",
    "['fox', 'wolf', 'crane']",
    "fox, wolf, crane",
)
SUFFIXES = st.sampled_from((".txt", ".csv", ".tsv", ".json", ".yaml", ".yml", ".names", ""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lists")


def written(path: Path, content: str | bytes) -> Path:
    data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    path.write_bytes(data)
    return path


CONTENTS = st.one_of(
    mutated_text(LISTS), LINES, BOMBS, encoded(LINES), mutated([t.encode("utf-16") for t in LISTS])
)


@given(CONTENTS, SUFFIXES)
def test_a_class_list(folder: Path, content: str | bytes, suffix: str) -> None:
    path = written(folder / f"names{suffix}", content)
    with judged("class_lists.read"):
        found = vocabulary.read_class_list(path)
        assert len(found) >= 2
        assert all(name == prompts.visible(name) for name in found.class_names)
    with judged("adapt --classes"):
        inputs.read_class_list(path, allow_duplicates=True)


NAMES = st.lists(
    st.text("abcdefg hijkß-/'é", min_size=1, max_size=9)
    .map(lambda s: " ".join(s.split()))
    .filter(lambda name: name[:1].isalpha() and name[-1:].isalpha()),
    min_size=3,
    unique_by=lambda name: (prompts.reads_as(name), name.casefold()),
)


@given(NAMES.filter(lambda names: not {"class", "name", "label"} & set(names)))
def test_plain_names_are_read_as_they_were_written(folder: Path, names: list[str]) -> None:
    path = written(folder / "plain.txt", "\n".join(names) + "\n")
    as_json = written(folder / "plain.json", json.dumps(names))
    with judged("class_lists.read: round trip"):
        assert list(vocabulary.read_class_list(path).class_names) == names
        assert list(vocabulary.read_class_list(as_json).class_names) == names


LABELS = (
    "file,class\na.png,fox\nmore/b.png,wolf\n",
    "sep=;\nfilename;class_name;x\na.png;fox;1\n",
    'file,class\n"a ""b"".png","fox"\n',
    "FILE\tCLASS\r\na.png\tfox\r\n",
)


@given(
    st.one_of(mutated_text(LABELS), BOMBS, encoded(LINES.map("file,class\n{}".format)), LINES),
)
def test_a_list_of_labels(folder: Path, content: str | bytes) -> None:
    path = written(folder / "labels.csv", content)
    images = [folder / "a.png", folder / "more" / "b.png"]
    with judged("read_label_list"):
        assert vocabulary.read_label_list(path)
    with judged("match_label_list"):
        vocabulary.match_label_list(path, folder, images, ("fox", "wolf"))


CELLS = (
    st.text(min_size=1, max_size=6)
    .map(lambda s: prompts.visible(s).strip())
    .filter(lambda s: s and s.isprintable() and not s.startswith("sep="))
)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5))
def test_labels_are_read_as_csv_writes_them(folder: Path, rows: list[tuple[str, str]]) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([("file", "class"), *rows])
    path = written(folder / "labels.csv", stream.getvalue())
    with judged("read_label_list: round trip"):
        found = vocabulary.read_label_list(path)
        assert [(entry.file, entry.class_name) for entry in found] == rows


SENTENCES = (
    '{"fox": ["A fox is red.", "It runs."], "wolf": ["A wolf is grey."]}',
    '{"model": "m", "descriptions": {"fox": ["A fox."], "fox": ["It runs."]}}',
    '[{"class": "fox", "descriptions": ["A fox is red."]}, {"class": "wolf", "text": "Grey."}]',
    '{"fox": {"colour": ["It is red."], "shape": ["It is long."]}}',
    '{"class": "fox", "text": "A fox."}\n{"class": "wolf", "text": "A wolf."}\n',
)
SHAPED = st.dictionaries(
    TEXTS,
    st.one_of(st.lists(TEXTS), TEXTS, st.lists(st.lists(TEXTS)), VALUES),
    max_size=4,
)


@given(
    st.one_of(
        mutated_text(SENTENCES),
        dumped(SHAPED),
        dumped(SHAPED.map(lambda own: {"descriptions": own})),
        dumped(st.lists(st.fixed_dictionaries({"class": TEXTS | VALUES, "text": TEXTS | VALUES}))),
        dumped(VALUES),
        BOMBS,
        encoded(dumped(SHAPED)),
    )
)
def test_sentences_by_class(folder: Path, content: str | bytes) -> None:
    path = written(folder / "own.json", content)
    with judged("sentence_files"):
        found = sentence_files.read_sentences(path)
        assert all(isinstance(text, str) for own in found.sentences.values() for text in own)
    with judged("describe --check"):
        mending.check_file(path, ("fox", "wolf")).table()
    with judged("descriptions.checked"):
        found = sentence_files.read_sentences(path)
        given_ = {name: own for name, own in found.sentences.items() if own}
        checked(given_, str(path))


@given(
    st.dictionaries(
        st.text(min_size=1)
        .map(lambda s: prompts.visible(s).strip())
        .filter(bool)
        .filter(lambda s: s not in ("descriptions", *sentence_files._WRAPPERS))
        .filter(sentence_files._is_encodable),
        st.lists(st.text().filter(sentence_files._is_encodable), min_size=1),
        min_size=1,
    )
)
def test_sentences_are_read_as_they_were_written(
    folder: Path, sentences: dict[str, list[str]]
) -> None:
    path = written(folder / "own.json", json.dumps({"model": "m", "descriptions": sentences}))
    with judged("sentence_files: round trip"):
        found = sentence_files.read_sentences(path)
        assert {name: list(own) for name, own in found.sentences.items()} == sentences


MANIFEST = (
    f"{','.join(manifest.COLUMNS)}\ntrain,a.png,0,fox,{'0' * 64}\ntest,b.png,1,wolf,{'1' * 64}\n"
    f"train,c.png,-1,,{'2' * 64}\n"
)


@given(
    mutated([MANIFEST.encode()], [b'"', b"\r", b"\xff", "²".encode(), b"9" * 5000, b","]) | BOMBS
)
def test_a_manifest(tmp_path_factory: pytest.TempPathFactory, content: str | bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "manifests"
    path = root / paths.MANIFEST.format(dataset="own")
    path.parent.mkdir(parents=True, exist_ok=True)
    written(path, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with judged("read_manifest"):
            found = manifest.read_manifest("own")
            names = vocabulary.checked(("fox", "wolf"), "names")
            manifest.check_labels(found, names)
            manifest.check_left(found, ())


@few(2)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(manifest.SPLITS),
            st.text(min_size=1).filter(sentence_files._is_encodable),
            st.integers(0, 9),
            st.text().filter(sentence_files._is_encodable),
        ),
        max_size=4,
    )
)
def test_a_manifest_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int, str]]
) -> None:
    root = tmp_path_factory.getbasetemp() / "manifests"
    root.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        path = Path(paths.MANIFEST.format(dataset="own"))
        with judged("manifest: round trip"):
            manifest.write_manifest(path, manifest.COLUMNS, [(*row, "0") for row in rows])
            found = manifest.read_manifest("own")
            assert [
                *zip(found.splits, found.names, found.labels, found.class_names, strict=True)
            ] == (rows)


@few(2)
@given(st.lists(TEXTS, max_size=6))
def test_class_folders(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    root = tmp_path_factory.mktemp("folders")
    for name in names:
        plain = name.replace("/", "-").replace("\x00", "-").encode("utf-8", "replace")[:200]
        if plain.strip(b".") and plain not in (b".", b".."):
            (root / plain.decode("utf-8", "surrogateescape")).mkdir(exist_ok=True)
    with judged("class folders"):
        vocabulary._folder_vocabulary(FolderSource(folder=root))
