"""`microclip init` writes a whole folder or nothing; what it lacks comes with the package."""

from pathlib import Path

import pytest
import yaml

from microclip import paths, settings, study
from microclip.cli import main


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder that is no project."""
    monkeypatch.delenv("MICROCLIP_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_folder_has_a_study_of_its_name_to_edit(place: Path) -> None:
    assert main.main(["init", "birds"]) == 0
    written = place / "birds"
    assert yaml.safe_load((written / "config/config.yaml").read_text())["study"] == "birds"
    for name in ("Snakefile", "workflow/rules/adapt.smk", "workflow/profiles/default/profile.yaml"):
        assert (written / name).read_bytes() == (paths.INSTALLED / name).read_bytes()
    assert not (written / "workflow/plugins").exists()  # the package installs them
    assert "-e ." not in (written / "environment.yml").read_text()
    assert "results/birds/" in (written / "README.md").read_text()


def test_its_files_come_before_those_of_the_package(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main.main(["init", "birds"])
    monkeypatch.chdir(place / "birds")
    declared = study.load(settings.read_yaml(Path("config/config.yaml")), "config/config.yaml")
    assert len(declared.runs) == 5
    weights = Path("resources/icon-clip/icon-clip.safetensors")
    assert settings.load_backbone_settings("icon-clip").files["weights"] == (
        paths.INSTALLED / weights
    )
    weights.parent.mkdir()
    weights.touch()
    assert settings.load_backbone_settings("icon-clip").files["weights"] == weights.absolute()
    assert paths.resource("resources/nothing") == place / "birds/resources/nothing"


@pytest.mark.parametrize(
    ("name", "said"), [("full", "not an empty folder"), ("a b", "got 'a b'"), ("file", "empty")]
)
def test_other_folders_are_refused_and_left_alone(
    name: str, said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "full").mkdir()
    (place / "full/notes").touch()
    (place / "file").touch()
    before = sorted(place.rglob("*"))
    assert main.main(["init", name]) == 2
    assert said in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before
