"""Lists of class names in the forms that people bring: read, refused by line, or left alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from microclip.data.class_lists import parse
from microclip.data.vocabulary import load_vocabulary, read_class_list
from microclip.settings import DatasetSettings, FolderSource, SettingsError, load_dataset
from microclip.settings.base import say_once

ROOT = Path(__file__).resolve().parents[2]
LISTS = sorted([*ROOT.glob("resources/classes/*.txt"), *ROOT.glob("resources/icons/*/classes.txt")])


def names(text: str, suffix: str = ".txt") -> list[str]:
    return [name for _, name in parse(text, "names", suffix).numbered]


@pytest.mark.parametrize("path", LISTS, ids=[f"{p.parent.name}/{p.stem}" for p in LISTS])
def test_every_shipped_list_is_read_as_it_stands(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = parse(text, str(path))
    assert [name for _, name in found.numbered] == [own for own in text.split("\n") if own]
    assert [note for note in found.notes if "left out" in note or "removed" in note] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 red fox\n1 owl\n2 yak\n", "numbers left out"),
        ("1. red fox\n2. owl\n3. yak", "numbers left out"),
        ("1.red fox\n2.owl\n3.yak", "numbers left out"),
        ("01) red fox\n02) owl\n03) yak", "numbers left out"),
        ("(1) red fox\n(2) owl\n(3) yak", "numbers left out"),
        ("[0] red fox\n[1] owl\n[2] yak", "numbers left out"),
        ("0: red fox\n1: owl\n2: yak", "numbers left out"),
        ("0,red fox\n1,owl\n2,yak", "column 2 of 2"),
        ("1\tred fox\n2\towl\n3\tyak", "column 2 of 2"),
        ("1 - red fox\n2 - owl\n3 - yak", "numbers left out"),
        ("red fox 0\nowl 1\nyak 2", "numbers left out"),
        ("red fox,1\nowl,2\nyak,3", "column 1 of 2"),
        ("1 001.red fox\n2 002.owl\n3 003.yak", "numbers left out"),
        ("idx name\n0 red fox\n1 owl\n2 yak", "line 1 ('idx name') taken as a heading"),
        ("n0211 red fox\nn0212 owl\nn0213 yak", "WordNet ids left out"),
        ("n02119789 1 red fox\nn02100735 2 owl\nn02110185 3 yak", "WordNet ids left out"),
        ("n02119789\tred fox\nn02100735\towl\nn02110185\tyak", "column 2 of 2"),
        ("- red fox\n- owl\n- yak", "bullets left out"),
        ("• red fox\n• owl\n• yak", "bullets left out"),
        ("- [ ] red fox\n- [x] owl\n- [ ] yak", "bullets left out"),
        ("My animals\n* red fox\n* owl\n* yak", "line 1 ('My animals') taken as a heading"),
        ("# red fox\n# owl\n# yak", "bullets left out"),
        ("# animals, 2024\nred fox\n\nowl\n// that was two\nyak", "comments left out (lines 1, 5)"),
        ("Classes\n=======\nred fox\nowl\nyak", "comments left out (line 2)"),
        ("Animals:\nred fox\nowl\nyak", "line 1 ('Animals:') taken as a heading"),
        ("class_name\nred fox\nowl\nyak", "taken as a heading"),
        ('"red fox"\n"owl"\n"yak"', "quotes left out"),
        ("'red fox',\n'owl',\n'yak'", "quotes left out"),
        ("“red fox”\n“owl”\n“yak”", "quotes left out"),
        ("- **red fox**\n- **owl**\n- **yak**", "quotes left out"),
        ("red fox,\nowl,\nyak", "commas or colons left out"),
        ("red fox;\nowl;\nyak;", "commas or colons left out"),
        ("id,name\n7,red fox\n3,owl\n5,yak", "column 2 of 2"),
        ("id;name;note\n7;red fox;a\n3;owl;b\n5;yak;c", "column 2 of 3"),
        (
            "| id | name |\n|---|---|\n| 0 | red fox |\n| 1 | owl |\n| 2 | yak |",
            "taken as the names",
        ),
        ("red fox, owl, yak\n", "one line, taken as 3 names"),
        ("classes: red fox; owl; yak", "one line, taken as 3 names"),
        ("['red fox', 'owl', 'yak',]", "read as JSON"),
        ('["red fox",\n "owl",\n "yak"]', "read as JSON"),
        ('{"2": "yak", "0": "red fox", "1": "owl"}', "read as JSON"),
        ('{"yak": 2, "red fox": 0, "owl": 1}', "read as JSON"),
        ('{"0": ["n1", "red fox"], "1": ["n2", "owl"], "2": ["n3", "yak"]}', "read as JSON"),
        ('{"id2label": {"0": "red fox", "1": "owl", "2": "yak"}, "x": 1}', "read as JSON"),
        (
            '[{"id": 1, "name": "red fox"}, {"id": 2, "name": "owl"}, {"id": 3, "name": "yak"}]',
            "JSON",
        ),
        (
            "red\u00a0fo\u00adx\n\u200bowl\nya\u200ek",
            "invisible characters removed (lines 1, 2, 3)",
        ),
        ("red fox\n\ufeffowl\nyak", ""),  # two files with marks, joined
        ("a. red fox\nb. owl\nc. yak", "letters left out"),
        ("(a) red fox\n(b) owl\n(c) yak", "letters left out"),
        ("i. red fox\nii. owl\niii. yak", "letters left out"),
        ("0_red fox\n1_owl\n2_yak", "numbers left out"),
        ("class 0: red fox\nclass 1: owl\nclass 2: yak", "numbers left out"),
        ("**1.** red fox\n**2.** owl\n**3.** yak", "numbers left out"),
        ("１．red fox\n２．owl\n３．yak", "numbers left out"),  # noqa: RUF001
        ("① red fox\n② owl\n③ yak", "numbers left out"),
        ("✅ red fox\n✅ owl\n✅ yak", "bullets left out"),
        ("-red fox\n-owl\n-yak", "bullets left out"),
        ("## Animals\n\n- red fox\n- owl\n- yak", "comments left out (line 1)"),
        ("## Animals\nred fox\nowl\nyak", "comments left out (line 1)"),
        ("; animals\nred fox\nowl\nyak", "comments left out (line 1)"),
        ("---\ntitle: Animals\n---\nred fox\nowl\nyak", "metadata before the first name"),
        ("sep=;\nid;name\n0;red fox\n1;owl\n2;yak", "column 2 of 2"),
        ("3\nred fox\nowl\nyak", "line 1 ('3') taken as the number of names"),
        ("- [red fox](a)\n- [owl](b)\n- [yak](c)", "quotes left out"),
        ("「red fox」\n「owl」\n「yak」", "quotes left out"),
        ("./red fox/\n./owl/\n./yak/", "folders left out"),
        ("train/red fox\ntrain/owl\ntrain/yak", "folders left out"),
        ("red fox\u2028owl\u2028yak", ""),
        ("red fox，owl，yak", "one line, taken as 3 names"),  # noqa: RUF001
        ("red fox\nowl\nyak\n\x1a", ""),  # the end mark of DOS
        ("CLASSES = [\n  'red fox',\n  'owl',\n  'yak',\n]\n", "read as JSON or Python"),
        ("{0: 'red fox',\n 1: 'owl',\n 2: 'yak'}", "read as JSON or Python"),
        ('{"name": "red fox"}\n{"name": "owl"}\n{"name": "yak"}', "read as JSON"),
        ('{"label2id": {"yak": 2, "red fox": 0, "owl": 1}}', "read as JSON"),
    ],
)
def test_a_form_that_every_line_has_is_taken_off_and_said(text: str, said: str) -> None:
    assert names(text) == ["red fox", "owl", "yak"]
    assert said in "; ".join(parse(text, "names").notes)


def test_files_of_data_and_yaml_are_read_by_their_form() -> None:
    assert names('class\n"tench, Tinca tinca"\nfox', ".csv") == ["tench, Tinca tinca", "fox"]
    assert names("name\nlabel\nfox\nowl", ".csv") == ["label", "fox", "owl"]
    assert names("animal\nfox\nowl", ".csv") == ["animal", "fox", "owl"]
    assert "line 1 ('animal') taken as a class" in parse("animal\nfox\nowl", "x", ".csv").notes[0]
    with pytest.raises(SettingsError, match="nc is 5, but 2 names are listed"):
        names("nc: 5\nnames: [fox, owl]\n", ".yaml")
    assert names("train: a\nnames:\n  0: person\n  1: no\n", ".yaml") == ["person", "no"]
    assert names("names: [person, 1e3]\nnc: 2\n", ".yml") == ["person", "1e3"]


@pytest.mark.parametrize(
    "lines",
    [
        ["7 up", "fanta", "cola"],
        ["2012 Audi A4 sedan", "2011 BMW X5", "2010 Fiat 500"],
        ["#hashtag", "#other", "#more"],
        ["1 euro", "2 euro", "3 euro"],
        ["3 series", "5 series", "7 series"],
        ["1st grade", "2nd grade", "3rd grade"],
        ["2-door car", "3-wheeler", "4-door car"],
        ["1.5 ton truck", "2.5 ton truck", "3 ton truck"],
        ["Saturn 1", "Apollo 2", "Vostok 3"],
        ["0", "1", "2"],
        ["10 Downing Street", "11 Downing Street"],
        ["St. John's", "U.S.A.", "C++", "C#", ".NET"],
        ["tench, Tinca tinca", "goldfish, Carassius auratus"],
        ["Portland, Oregon", "Rome"],
        ["F/A-18 'Hornet'", '../../etc/"passwd"', "$(touch x)  `ls` | |"],
        ['"Weird Al"', "'t Hooft", "label"],
        ["n02 gas", "n0211 fox", "fox"],
        ["{fox}", "{owl}"],
        ["1. FC Köln", "1. FC Nürnberg", "Bayern", "Dortmund"],
        ["1. FC Köln", "1. FC Nürnberg"],
        ["fox [young]", "(fox)"],
        ["👩\u200d🚀 astronaut", "می\u200cخواهم"],
        ["a:b", "c = d", "x; y", "p | q"],
        ["F/A-18", "F/A-22", "F/A-50"],
        ["A. mellifera", "B. terrestris"],
        ["I. Newton", "II. World War"],
        ["A. mellifera", "B. terrestris", "V. vulgaris"],
        ["1-door car", "2-door car", "2-door van"],
        ["<pad>", "<unknown>", "fox"],
        ["@fox", "@owl", "...yak"],
    ],
)
def test_a_name_is_never_damaged(lines: list[str]) -> None:
    assert names("\n".join(lines)) == lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- fox\nowl\nyak", "line 1 of names: '- fox' begins with a bullet, and not every line"),
        ("fox\n1. owl\n2. yak\nelk", "line 1 of names: 'fox' breaks the numbering"),
        ("2. fox\n3. owl", "line 1 of names: '2. fox' breaks the numbering"),
        ("1. fox\n2. owl\n4. yak", "line 3 of names: '4. yak' breaks the numbering"),
        ("1. fox\n2. owl\n\n1. yak", "line 4 of names: '1. yak' breaks the numbering"),
        ("2 fox\n0 owl\n1 yak", "line 1 of names: '2 fox' has its number out of sequence"),
        ("fox\nowl,\nyak\nelk", "line 2 of names: 'owl,' ends with a comma"),
        ("Birds:\nowl\nMammals:\nfox", "line 1 of names: 'Birds:' ends with a comma or a colon"),
        ("fox\tred\nowl\tgrey", "line 1 of names: 2 columns, and it is unclear which one"),
        ("fox|red\nowl|grey", "line 1 of names: 2 columns, and it is unclear which one"),
        ("n02119789 fox\nn02100735 owl\nyak", "line 3 of names: 'yak' has no WordNet id"),
        ('{"fox": ["It is red."]}', "expected a list of names, got"),
        ("id,name\n2,yak\n0,fox\n1,owl", "line 2 of names: '2,yak' has its number out of"),
        ('[{"id": 2, "name": "owl"}, {"id": 1, "name": "fox"}]', "entry 2 has its 'id' out of"),
        ('{"0": "fox", "1": "owl", "1": "yak"}', "the key '1' is there twice"),
        ("{0: 'fox', 1: 'owl', 1: 'yak'}", "the key '1' is there twice"),
        ("NAMES = ['fox' 'owl', 'yak']", "a comma is missing after \"['fox'\""),
        ("{'fox', 'owl'}", "a set has no order"),
        ("<ul>\n<li>fox</li>\n<li>owl</li>\n</ul>", "line 1 of names: '<ul>' looks like HTML"),
        ("[1, 2]", "expected a list of names, got '[1, 2]'"),
    ],
)
def test_a_form_that_some_lines_have_is_refused_by_line(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        names(text)
    assert said in str(caught.value)
    remedies = ("one class name per line", "keep that column alone")
    assert any(remedy in str(caught.value) for remedy in remedies)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label,name\n1,fox\n0,wolf", "'1,fox' has its number out of sequence"),
        ("fox,2\nwolf,0\ndog,1", "'fox,2' has its number out of sequence"),
        ('"fox\nred",1\nwolf,2', "begins a quote that does not end in it"),
        ('name\nwolf\n"fox\nred"', "begins a quote that does not end in it"),
    ],
)
def test_a_csv_file_with_shuffled_labels_or_broken_quotes_is_refused(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text, "names", ".csv")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_csv_files_heading_that_is_left_out_is_not_called_a_class() -> None:
    found = parse("id;name\n0;apple\n1;banana\n2;fig", "names", ".csv")
    assert [name for _, name in found.numbered] == ["apple", "banana", "fig"]
    assert found.notes == ("column 2 of 2 taken as the names",)
    assert [name for _, name in parse('5" gun\nfox', "names", ".csv").numbered] == ['5" gun', "fox"]


def test_what_may_be_meant_otherwise_is_noted() -> None:
    for text, said in (
        ("1 fox\n2 owl\n4 elk", "numbers taken as part of the name (lines 1, 2)"),
        ("fox # red\nowl", "looks like a comment taken as part of the name (line 1)"),
        ("label\nfox\nowl", "line 1 ('label') taken as a class and not as a heading"),
        ("#animals\nfox\nowl", "what may be a comment taken as a name (line 1)"),
        ("fox 120\nowl 80\nyak 95", "every line has a number, taken as part of the name"),
        ("fox: red\nowl: grey\nyak: big", "every line has a colon or a dash, taken as part"),
        ("a, b\nc, d", "every line has a comma, taken as part of the name"),
    ):
        assert said in "; ".join(parse(text, "names").notes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_is_read_in_every_marked_encoding_and_with_all_line_ends(
    tmp_path: Path, encoding: str, end: str
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(end.join(["0 café", "1 owl", "2 yak", ""]).encode(encoding))
    assert read_class_list(path).class_names == ("café", "owl", "yak")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("fox\ncafé\n".encode("cp1252"), "line 2 has the byte 0xe9 ('café' if that is Windows"),
        ("fox\n“owl”\n".encode("cp1252"), "line 2 has the byte 0x93 ('“owl”' if that is"),
        (b"\xff\xfef\0o\0x\0\n", "not text in UTF-16, as its first bytes say; save it as UTF-8"),
        (b"PK\x03\x04\x14\0\x06\0", "is a ZIP archive, as spreadsheets (.xlsx) and documents"),
        (rb"{\rtf1\ansi fox\par owl}", "is a rich text (RTF); save it as plain text"),
        (b"\x1f\x8b\x08\0\0\0", "is not UTF-8 text: line 1 has the byte 0x8b; save it as UTF-8"),
    ],
)
def test_another_encoding_is_refused_by_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_class_list(path)
    assert said in str(caught.value)


def test_a_huge_file_and_a_long_line_are_refused_quickly(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    with path.open("wb") as stream:
        stream.truncate(65 * 2**20)
    with pytest.raises(SettingsError, match="has 65 MiB, at most 64 are read"):
        read_class_list(path)
    path.write_text("fox\n" + "a" + " " * 10**6 + "b\n")
    with pytest.raises(SettingsError, match="line 2 of .* at most 200 are allowed"):
        read_class_list(path)
    path.write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(SettingsError):
        read_class_list(path)


@pytest.mark.usefixtures("project")
def test_a_study_reads_its_list_by_the_same_reader_and_says_so_once(
    own_project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = own_project / "resources" / "classes" / "shapes.txt"
    listed.parent.mkdir()
    listed.write_bytes(b"\xef\xbb\xbf1) disc\r\n2) square\r\n")
    say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert load_vocabulary(load_dataset("shapes")).class_names == ("disc", "square")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["resources/classes/shapes.txt: numbers left out of every line"]


@pytest.mark.parametrize(
    ("folders", "is_said"),
    [
        (["001.Laysan", "002.Sooty", "003.Rhino"], True),
        (["0 fox", "1 owl"], True),
        (["n01440764", "n01443537"], True),
        (["n0211 fox", "n0212 owl"], True),
        (["7 up", "cola"], False),
        (["0", "1", "2"], False),
        (["2 fox", "1 owl", "fox"], False),
    ],
)
def test_numbered_folders_are_classes_as_they_stand_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folders: list[str], is_said: bool
) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    source = FolderSource(folder=tmp_path)
    dataset = DatasetSettings(name="own", title="Own", source=source, templates=("a {}",))
    with caplog.at_level(logging.WARNING):
        assert load_vocabulary(dataset).class_names == tuple(sorted(folders))
    assert ("class folders are named by numbers" in caplog.text) is is_said
