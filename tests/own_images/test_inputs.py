"""Bad input to `adapt` and `predict`: one line of error, the right exit code, nothing written.

The numbers B1 to B19 refer to the project's list of bad inputs that it promises to handle.
"""

from __future__ import annotations

import json
import pickle
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microclip.cli import main
from microclip.own_images import inputs
from microclip.own_images.record import Options
from tests.fixtures.project import CLASSES, SENTENCES, draw
from tests.own_images.folder import N_IMAGES, adapt, place, write_labels, write_photos

__all__ = ["place"]


@dataclass(frozen=True)
class Case:
    """What is broken, how the command differs, and what its one-line error must contain."""

    name: str
    spoil: Callable[[], object]
    said: Sequence[str]
    options: Sequence[str] = ()
    code: int = 2
    instead: Sequence[str] = ()  # of the usual command line


def nothing() -> None:
    pass


def names(*lines: str) -> Callable[[], object]:
    return lambda: Path("names.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sentences(values: object) -> Callable[[], object]:
    return lambda: Path("own.json").write_text(json.dumps(values))


def labels(*lines: str) -> Callable[[], object]:
    return lambda: Path("labels.csv").write_text("\n".join(lines) + "\n")


def bytes_of(name: str, content: bytes) -> Callable[[], object]:
    return lambda: Path("photos", name).write_bytes(content)


def image_of(name: str, width: int, height: int) -> Callable[[], object]:
    return lambda: Image.new("1", (width, height)).save(Path("photos", name))


def only(*files: str) -> None:
    shutil.rmtree("photos")
    Path("photos").mkdir()
    for name in files:
        Path("photos", name).write_bytes(b"x")


def bomb() -> None:
    """Write a PNG whose head claims 30,000 x 30,000 pixels."""
    Image.new("L", (30, 30)).save("photos/bomb.png")
    data = bytearray(Path("photos/bomb.png").read_bytes())
    data[16:24] = (30000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    Path("photos/bomb.png").write_bytes(data)


def link(name: str, target: Path | str) -> Callable[[], object]:
    return lambda: Path("photos", name).symlink_to(target)


def in_parts() -> None:
    for part in ("train", "val"):
        Path(part).mkdir()
        shutil.copytree("photos", Path(part, "fox"))
    shutil.rmtree("photos")
    Path("photos").mkdir()
    for part in ("train", "val"):
        Path(part).rename(Path("photos", part))


def links_alone() -> None:
    Path("photos").rename("pool")
    Path("photos").mkdir()
    for path in Path("pool").glob("*.png"):
        Path("photos", path.name).symlink_to(path.absolute())


def pickled(name: str) -> Callable[[], object]:
    def write() -> None:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(pickle.dumps({"weights": [1.0]}))

    return write


def without(*options: str) -> tuple[str, ...]:
    return ("adapt", "photos", "--out", "adapted", "--backbone", "tiny", *options)


DESCRIBED = ("--descriptions", "own.json")
LABELLED = ("--labels", "labels.csv")
ONE = "photo-00.png"
LONG = "x" * 300
CASES = (
    Case("B1 missing", lambda: shutil.rmtree("photos"), ["photos does not exist"]),
    Case("B1 empty", only, ["No images in photos (looked for jpg, png, webp", "; it is empty)"]),
    Case(
        "B1 a file",
        nothing,
        ["names.txt is a file; give a folder that contains images"],
        instead=("adapt", "names.txt", "--classes", "names.txt", "--out", "adapted"),
    ),
    Case(
        "parts of a dataset as classes",
        in_parts,
        ["train, val in photos are parts of a dataset", "`microclip adapt photos/train "],
        instead=without("--classes-from-folders"),
    ),
    Case(
        "links alone",
        links_alone,
        ["a link out of the folder, to ", "copy the file instead", "`cp -RL "],
    ),
    Case("B1 others", lambda: only("a.txt", "b.txt", "c.doc"), ["found 1 .doc, 2 .txt)"]),
    Case(
        "B2 no classes",
        nothing,
        ["class names are needed because CLIP compares images with names", "--classes FILE"],
        instead=without(),
    ),
    Case(
        "B2 no such list",
        nothing,
        ["class list no.txt is not a file"],
        ("--classes", "no.txt"),
        3,
    ),
    Case(
        "B2 no folders of classes",
        nothing,
        ["--classes-from-folders: 6 images are in photos itself, first photo-00.png"],
        instead=without("--classes-from-folders"),
    ),
    Case(
        "B3 twice",
        names("missile", "owl", "missile", "Sunglasses", "sunglasses"),
        [
            "2 class names appear twice in names.txt: 'missile' (lines 1 and 3), 'sunglasses' "
            "(lines 4 and 5)",
            "distinguish them (for example 'missile (weapon)')",
            "--allow-duplicates keeps both",
        ],
    ),
    Case(
        "B3 alike",
        names("Red fox", "owl", "red_ fo\u00adx", "red\u00a0FOX"),
        ["2 class names appear twice in names.txt: 'red fox' (lines 1 and 3), 'red FOX' (lines"],
    ),
    Case("B4 one", names("owl"), ["expected at least 2 classes, got 1 in names.txt"]),
    Case("B4 none", names("", "  "), ["expected at least 2 classes, got 0 in names.txt"]),
    Case(
        "B5 300 characters",
        names("owl", "yak", LONG),
        ["line 3 of names.txt: a class name of 300 characters", "at most 200"],
    ),
    Case("B5 tab", names("owl", "y\tak"), ["line 2 of names.txt: a class name contains a tab"]),
    Case("B5 marks", names("owl", "!?"), ["line 2 of names.txt: the class name '!?' has no"]),
    Case(
        "B5 no text",
        lambda: Path("names.txt").write_bytes(b"owl\n\xff\xfe\n"),
        ["class list names.txt is not UTF-8 text"],
    ),
    Case("B8 one pixel", image_of("dot.png", 1, 1), ["dot.png: ", "1 x 1"]),
    Case("B8 a line", image_of("line.png", 30000, 2), ["line.png: ", "30000 x 2"]),
    Case("B8 bomb", bomb, ["bomb.png: 900 megapixels; at most 120 megapixels are read"]),
    Case(
        "B9 HTML",
        bytes_of("page.jpg", b"<!doctype html><html>404</html>"),
        ["1 of 16 images cannot be read: photos/page.jpg: an HTML page", "bad_files.csv"],
    ),
    Case("B9 zero bytes", bytes_of("zero.jpg", b""), ["zero.jpg: ", "--skip-bad"]),
    Case("B10 a loop", link("round", "."), ["photos/round: a link", "loop); not followed"]),
    Case("B10 out", link("out.png", "/etc/hosts"), ["out.png: a link out of the folder"]),
    Case("B10 to nothing", link("gone.png", "gone"), ["gone.png: a link in a loop or to nothing"]),
    Case(
        "B12 unknown class",
        labels("file,class", f"{ONE},red disc", f"{ONE[:-5]}3.png,wolf"),
        ["line 3: unknown class 'wolf'", "nothing was started"],
        LABELLED,
    ),
    Case(
        "B12 missing file",
        labels("file,class", "no.png,red_disc"),
        ["line 2: 'no.png' is not an image in photos"],
        LABELLED,
    ),
    Case(
        "B12 without its folder",
        labels("file,class", f"elsewhere/{Path(ONE).name},red_disc"),
        [f"is not an image in photos (is it '{ONE}'?)"],
        LABELLED,
    ),
    Case(
        "B12 double row",
        labels("file,class", f"{ONE},red_disc", f"{ONE},blue bar"),
        [f"line 3: '{ONE}' is already on line 2"],
        LABELLED,
    ),
    Case("B12 columns", labels("image,name", "a,b"), ["expected the columns file,class"], LABELLED),
    Case(
        "B13 missing class",
        sentences({name: own for name, own in SENTENCES.items() if name != "blue bar"}),
        ["own.json", "missing 1 (first 'blue bar'); write the missing sentences"],
        DESCRIBED,
    ),
    Case(
        "B13 empty list",
        sentences({**SENTENCES, "blue bar": []}),
        ["own.json", "empty 1 (first 'blue bar')"],
        DESCRIBED,
    ),
    Case(
        "B13 stubs",
        sentences({**SENTENCES, "blue bar": [".", "1.", "See www.bars.com for blue bars."]}),
        [
            "stub 2 (first '.')",
            "url 1",
            "`microclip describe --check own.json`",
            "--fix writes a corrected copy",
        ],
        DESCRIBED,
    ),
    Case(
        "B13 no JSON",
        lambda: Path("own.json").write_text("{"),
        ["descriptions own.json are not JSON"],
        DESCRIBED,
    ),
    Case("B13 no file", nothing, ["descriptions own.json do not exist"], DESCRIBED, 3),
    Case(
        "B18 descriptions",
        pickled("own.pkl"),
        ["own.pkl is a pickled file, which may run code when it is loaded"],
        ("--descriptions", "own.pkl"),
    ),
    Case(
        "B18 predict",
        pickled("model/adapted.pth"),
        ["model/adapted.pth is a pickled file, which may run code", "safetensors"],
        instead=("predict", "model", "photos"),
    ),
    Case("a setting", nothing, ["unknown key 'gama'", "did you mean 'gamma'"], ("--set", "gama=1")),
    Case("a backbone", nothing, ["unknown backbone 'RN50'"], ("--backbone", "RN50")),
    Case("out within", nothing, ["is inside the image folder"], ("--out", "photos/out")),
    Case("both", nothing, ["exclude each other"], (*DESCRIBED, "--llm", "gpt-4o")),
    Case("domain", nothing, ["contains braces", "a kind of bird"], ("--domain", "a {}")),
    Case("no model", nothing, ["reads a file and asks no model"], ("--llm", "shipped")),
)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_one_line_with_its_exit_code_and_starts_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    case.spoil()
    code = main.main(list(case.instead)) if case.instead else adapt(*case.options)
    said = capsys.readouterr()
    print(said.err.strip())
    assert code == case.code
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    for words in case.said:
        assert words in said.err
    left = {path.name for path in (place / "adapted").glob("*")}
    assert left <= {"bad_files.csv", ".lock"}


def test_class_names_may_contain_any_character(place: Path) -> None:
    """B5: slashes, quotes, emoji, commas and spaces reach tables and the page, never paths."""
    odd = [
        "F/A-18 'Hornet'",
        '../../etc/"passwd"',
        "🦉 owl, <b>grey</b>",
        "  $(touch x)  `ls` | | ",
    ]
    Path("names.txt").write_text("\n".join(odd) + "\n", encoding="utf-8")
    assert adapt() == 0
    record = json.loads(Path("adapted/adapted.json").read_text())
    assert record["class_names"] == [name.strip() for name in odd]
    page = Path("adapted/gallery.html").read_text()
    assert "<b>grey" not in page
    assert sorted(path.name for path in place.iterdir()) == [
        *("adapted", "names.txt", "photos", "results")
    ]


def test_a_final_underscore_makes_another_class() -> None:
    listed = [(1, "crane"), (2, "crane_"), (3, "owl")]
    assert inputs.checked_names(listed, "names.txt").class_names == ("crane", "crane_", "owl")
    thrice = [(1, "crane"), (2, "crane"), (3, "crane_")]
    found = inputs.checked_names(thrice, "names.txt", allow_duplicates=True)
    assert found.class_names == ("crane", "crane_", "crane__")


def test_allow_duplicates_keeps_both_names(place: Path) -> None:
    """B3: the later one gets a trailing underscore, which no prompt contains."""
    names("missile", "owl", "missile")()
    assert adapt("--allow-duplicates", "--method", "cupl") == 0
    record = json.loads(Path("adapted/adapted.json").read_text())
    assert record["class_names"] == ["missile", "owl", "missile_"]


def test_bad_files_are_skipped_only_on_request(place: Path) -> None:
    """B9: the list is written in both cases."""
    bytes_of("a.jpg", b"<html>")()
    bytes_of(".DS_Store", b"x")()
    assert adapt("--method", "cupl") == 2
    listed = Path("adapted/bad_files.csv").read_text()
    assert "photos/a.jpg" in listed
    assert ".DS_Store" not in listed
    assert adapt("--method", "cupl", "--skip-bad") == 0
    assert Path("adapted/bad_files.csv").read_text() == listed


def test_duplicate_images_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """B11: duplicates are reported because they weigh twice in training."""
    shutil.copy("photos/photo-00.png", "photos/copy.png")
    assert adapt("--method", "cupl") == 0
    assert "1 images are exact copies of another one" in capsys.readouterr().err


def test_a_sentence_too_long_for_the_text_tower_is_counted_and_truncated(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B13: a sentence with too many tokens is truncated, not refused."""
    sentences({**SENTENCES, "blue bar": ["A blue bar is " + "very " * 90 + "long."]})()
    assert adapt(*DESCRIBED, "--method", "cupl") == 0
    said = capsys.readouterr().err
    assert "longer than the text tower reads" in said
    assert "1 x too-long" in said


def test_files_for_other_classes_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """B19: the error gives both numbers of classes."""
    assert adapt() == 0
    names(*CLASSES, "yak")()
    assert adapt("--method", "cupl", out="other") == 0
    record = json.loads(Path("adapted/adapted.json").read_text())
    record["class_names"].append("yak")
    Path("adapted/adapted.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main.main(["predict", "adapted", "photos"]) == 2
    said = capsys.readouterr().err
    print(said)
    assert "is for 3 classes, adapted.json beside it names 4" in said
    shutil.copy("other/class_vectors.safetensors", "adapted/class_vectors.safetensors")
    assert main.main(["predict", "adapted", "photos"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_labels_of_bad_files_are_ignored(place: Path) -> None:
    """B12: a labelled image that cannot be read is not an error in the list."""
    truth = write_photos(place / "photos")
    bytes_of("torn.png", b"x")()
    write_labels(Path("labels.csv"), {**truth, "torn.png": "red_disc"})
    assert adapt(*LABELLED, "--skip-bad", "--method", "cupl") == 0
    scores = json.loads(Path("adapted/scores.json").read_text())
    assert scores["n_labelled"] == N_IMAGES


def test_unusual_image_modes_are_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """B7: they are converted, and the survey counts each mode."""
    draw(0, 9).convert("CMYK").save("photos/cmyk.jpg")
    draw(0, 8).convert("P").save("photos/palette.gif")
    draw(0, 7).convert("RGBA").save("photos/alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(0, 6).save("photos/turned.jpg", exif=turned)
    assert adapt("--method", "cupl") == 0
    said = capsys.readouterr().err
    for kind in ("CMYK 1", "P 1", "RGBA 1", "rotated 1"):
        assert kind in said


def test_12_bit_images_are_warned_of_and_stretched_on_request_in_predict_too(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ramp = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    for white in (4095, 65535):
        Path(str(white)).mkdir()
        Image.fromarray((ramp * white).astype(np.uint16)).save(f"{white}/a.png")
    shutil.copy("4095/a.png", "photos/dark.png")
    assert "stretch" not in Options().model_dump()  # and so not in older runs' digests
    assert adapt("--method", "cupl") == 0
    said = capsys.readouterr()
    assert "1 16-bit image holds no value above 4095 of 65535" in said.out + said.err
    assert adapt("--method", "cupl", "--stretch") == 2
    assert "--out adapted belongs to another command" in capsys.readouterr().err
    shutil.rmtree("adapted")
    assert adapt("--method", "cupl", "--stretch") == 0
    said = capsys.readouterr()
    assert "12-bit values in 16 bits, stretched 1" in said.out + said.err
    assert "hold no value above" not in said.out + said.err
    answers = []
    for white in (4095, 65535):
        assert main.main(["predict", "adapted", f"{white}/a.png", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        answers.append([found["top"][0]["class"], found["confidence"]])
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] == pytest.approx(answers[1][1], abs=0.01)


def test_a_list_in_another_form_gives_the_same_names(place: Path) -> None:
    """The names alone stand in the record, and so in every prompt."""
    Path("names.txt").write_bytes("0 red_disc\r\n1 green square\r\n2 blue bar\r\n".encode("utf-16"))
    assert adapt("--method", "cupl") == 0
    record = json.loads(Path("adapted/adapted.json").read_text())
    assert record["class_names"] == ["red_disc", "green square", "blue bar"]
