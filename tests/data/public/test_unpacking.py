"""Archives that lead outside, are cut short or lie are refused; others are unpacked whole."""

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from microclip import runtime
from microclip.data.public.unpacking import temporary_of, unpack

FILES = {"set/a.txt": b"first", "set/sub/b.txt": b"second" * 9000, "list.txt": b"a\nb\n"}


def add(archive: tarfile.TarFile, name: str, content: bytes = b"x", kind: bytes = b"0") -> None:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    archive.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)


def tar(path: Path, files: dict[str, bytes] = FILES, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            add(archive, name, content)
    return path


def zipped(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def below(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "home" / "set"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "a.tar": lambda path: tar(path, mode="w"),
    "a.tar.gz": tar,
    "a.tgz": tar,
    "a.tar.xz": lambda path: tar(path, mode="w:xz"),
    "a.tar.bz2": lambda path: tar(path, mode="w:bz2"),
    "a.zip": zipped,
    "no-suffix": zipped,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_is_unpacked_whole(tmp_path: Path, into: Path, name: str) -> None:
    unpack(WRITERS[name](tmp_path / name), into)
    assert below(into) == FILES
    assert sorted(path.name for path in into.iterdir()) == ["list.txt", "set"]


def test_folder_entries_and_dots_in_names_do_not_matter(tmp_path: Path, into: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, ".", kind=tarfile.DIRTYPE)
        add(archive, "./set", kind=tarfile.DIRTYPE)
        add(archive, "./set/a.txt", b"first")
        add(archive, "set", kind=tarfile.DIRTYPE)
    unpack(tmp_path / "a.tar", into)
    assert below(into) == {"set/a.txt": b"first"}


def test_unpacking_twice_does_nothing(tmp_path: Path, into: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz")
    unpack(archive, into)
    (into / "set/a.txt").write_bytes(b"changed since")
    unpack(archive, into)
    assert (into / "set/a.txt").read_bytes() == b"changed since"


def test_removed_files_are_restored_on_request(tmp_path: Path, into: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz")
    unpack(archive, into)
    (into / "set/sub/b.txt").unlink()
    unpack(archive, into, again=True)
    assert below(into) == FILES


def test_another_archive_with_the_same_name_is_unpacked(tmp_path: Path, into: Path) -> None:
    unpack(tar(tmp_path / "a.tar.gz"), into)
    unpack(tar(tmp_path / "a.tar.gz", {"set/c.txt": b"third"}), into)
    assert (into / "set/c.txt").read_bytes() == b"third"


def test_your_own_files_are_never_replaced(tmp_path: Path, into: Path) -> None:
    (into / "set").mkdir(parents=True)
    (into / "set/a.txt").write_bytes(b"my own")
    with pytest.raises(runtime.MissingDataError, match=r"set/a\.txt is in the way and differs"):
        unpack(tar(tmp_path / "a.tar.gz"), into)
    assert below(into) == {"set/a.txt": b"my own"}


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, into: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz")
    left = temporary_of(archive.name, into)
    left.mkdir(parents=True)
    (left / "half.txt").write_bytes(b"half")
    unpack(archive, into)
    assert below(into) == FILES


EVIL: dict[str, tuple[str, bytes, str]] = {
    "absolute": ("/tmp/evil.txt", b"0", "has an absolute path"),
    "up": ("../evil.txt", b"0", "leads out of its folder"),
    "up within": ("set/../../evil.txt", b"0", "leads out of its folder"),
    "only up": ("..", tarfile.DIRTYPE, "leads out of its folder"),
    "windows": ("..\\evil.txt", b"0", "has a Windows path"),
    "drive": ("C:evil.txt", b"0", "has a Windows path"),
    "symlink": ("set/link", tarfile.SYMTYPE, "is a link to '/etc/passwd'"),
    "hard link": ("set/link", tarfile.LNKTYPE, "is a link to '/etc/passwd'"),
    "device": ("set/null", tarfile.CHRTYPE, "is a device or another special file"),
    "disk": ("set/sda", tarfile.BLKTYPE, "is a device or another special file"),
    "pipe": ("set/pipe", tarfile.FIFOTYPE, "is a device or another special file"),
}


def refuse(archive: Path, into: Path, reason: str) -> None:
    """Check that an archive is refused and nothing is written anywhere."""
    home = archive.parent
    before = {path for path in home.rglob("*") if path != into and into not in path.parents}
    with pytest.raises(runtime.MissingDataError) as caught:
        unpack(archive, into)
    assert reason in str(caught.value)
    assert archive.name in str(caught.value)
    assert not list(into.iterdir())
    after = {path for path in home.rglob("*") if path != into}
    assert after - before <= {into.parent}


@pytest.mark.parametrize("case", EVIL)
def test_a_tar_that_leads_outside_is_refused_whole(tmp_path: Path, into: Path, case: str) -> None:
    name, kind, reason = EVIL[case]
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        add(archive, "set/good.txt")
        add(archive, name, kind=kind)
    refuse(tmp_path / "a.tar.gz", into, f"its member {name!r} {reason}")


@pytest.mark.parametrize("case", ["absolute", "up", "up within", "windows", "drive"])
def test_a_zip_that_leads_outside_is_refused_whole(tmp_path: Path, into: Path, case: str) -> None:
    name, _, reason = EVIL[case]
    archive = zipped(tmp_path / "a.zip", {"set/good.txt": b"x", name: b"x"})
    refuse(archive, into, f"its member {name!r} {reason}")


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(stat.S_IFLNK, "is a link"), (stat.S_IFCHR, "is a device or another special file")],
)
def test_a_zip_with_a_link_or_device_is_refused(
    tmp_path: Path, into: Path, mode: int, reason: str
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("set/odd")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refuse(tmp_path / "a.zip", into, f"its member 'set/odd' {reason}")


def test_a_zip_with_a_password_is_refused(tmp_path: Path, into: Path) -> None:
    content = bytearray(zipped(tmp_path / "a.zip", {"a.txt": b"x"}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    refuse(tmp_path / "a.zip", into, "needs a password")


def test_a_name_with_a_nul_is_refused(tmp_path: Path, into: Path) -> None:
    content = zipped(tmp_path / "a.zip", {"set/a.txt#.jpg": b"x"}).read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"#", b"\0"))
    refuse(tmp_path / "a.zip", into, "has a NUL in its name")


def test_a_path_through_a_link_is_refused_by_the_link(tmp_path: Path, into: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "set", kind=tarfile.SYMTYPE)
        add(archive, "set/evil.txt")
    refuse(tmp_path / "a.tar", into, "its member 'set' is a link")


def test_a_path_through_a_file_is_refused(tmp_path: Path, into: Path) -> None:
    archive = tar(tmp_path / "a.tar", {"set": b"x", "set/a.txt": b"x"}, "w")
    refuse(archive, into, "its member 'set/a.txt' leads through 'set'")


@pytest.mark.parametrize("writer", [tar, zipped], ids=["tar", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_with_one_name_must_be_identical(
    tmp_path: Path, into: Path, writer: Callable[[Path], Path]
) -> None:
    path = writer(tmp_path / "a.archive")
    is_tar = writer is tar
    for content, is_fine in ((b"first", True), (b"other", False)):
        if is_tar:
            with tarfile.open(path, "w") as archive:
                add(archive, "set/a.txt", b"first")
                add(archive, "./set//a.txt", content)
        else:
            with zipfile.ZipFile(path, "w") as twice:
                twice.writestr("set/a.txt", b"first")
                twice.writestr("set/a.txt", content)
        if is_fine:
            unpack(path, tmp_path / "fine")
            assert below(tmp_path / "fine") == {"set/a.txt": b"first"}
            path.with_name(f"{path.name}.unpacked.json").unlink()
        else:
            refuse(path, into, "two different members")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "no-suffix"])
def test_an_archive_cut_short_is_refused(
    tmp_path: Path, into: Path, name: str, share: float
) -> None:
    path = WRITERS[name](tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)] if name != "a.tar" else content[:55_000])
    refuse(path, into, "is cut short, damaged or not an archive")


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path, into: Path, blocks: int) -> None:
    path = tar(tmp_path / "a.tar", mode="w")
    path.write_bytes(path.read_bytes()[: 512 * 2 * blocks])
    if blocks == 2:
        refuse(path, into, "is cut short, damaged or not an archive")
    else:
        refuse(path, into, "it ends without an end mark")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>no archive</html>", gzip.compress(b"no tar" * 99, mtime=0), b"PK\3\4 cut"],
)
def test_a_file_that_is_not_an_archive_is_refused(
    tmp_path: Path, into: Path, content: bytes
) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content)
    refuse(tmp_path / "a.tar.gz", into, "is cut short, damaged or not an archive")


def test_a_flipped_bit_is_found_before_any_file_is_visible(tmp_path: Path, into: Path) -> None:
    content = bytearray(zipped(tmp_path / "a.zip", {"a.txt": os.urandom(5000)}).read_bytes())
    content[2500] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    refuse(tmp_path / "a.zip", into, "is cut short, damaged or not an archive")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_is_refused_by_the_sizes_it_states(
    tmp_path: Path, into: Path, compress: Callable[[bytes], bytes]
) -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 1 << 58
    (tmp_path / "a.tar.gz").write_bytes(compress(info.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(
        runtime.ResourceError, match=r"unpacking a\.tar\.gz needs 288230376151711744"
    ):
        unpack(tmp_path / "a.tar.gz", into)
    assert not list(into.iterdir())


def test_inner_archives_are_unpacked_into_the_same_folder(tmp_path: Path, into: Path) -> None:
    inner = tar(tmp_path / "inner.tar.gz").read_bytes()
    outer = zipped(tmp_path / "outer.zip", {"sub/inner.tar.gz": inner, "sub/readme": b"hello"})
    unpack(outer, into, ["sub/inner.tar.gz"])
    assert below(into) == {**FILES, "sub/readme": b"hello"}


def test_a_malicious_inner_archive_refuses_all(tmp_path: Path, into: Path) -> None:
    inner = tar(tmp_path / "inner.tar.gz", {"../evil.txt": b"x"}).read_bytes()
    outer = zipped(tmp_path / "outer.zip", {"sub/inner.tar.gz": inner, "sub/readme": b"hello"})
    with pytest.raises(runtime.MissingDataError, match=r"'\.\./evil\.txt' leads out"):
        unpack(outer, into, ["sub/inner.tar.gz"])
    assert not list(into.iterdir())


def test_a_missing_inner_archive_is_named(tmp_path: Path, into: Path) -> None:
    with pytest.raises(runtime.MissingDataError, match=r"outer\.zip has no sub/inner\.tar\.gz"):
        unpack(zipped(tmp_path / "outer.zip"), into, ["sub/inner.tar.gz"])
    assert not list(into.iterdir())


@pytest.mark.parametrize("has_filter", [True, False], ids=["filter", "python-3.11.2"])
@pytest.mark.filterwarnings("ignore:.*filter:DeprecationWarning")
def test_unpacked_files_are_neither_executable_nor_world_writable(
    has_filter: bool, tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.mode = 0o6777
        archive.addfile(info)
    unpack(tmp_path / "a.tar", into)
    assert stat.S_IMODE((into / "a.txt").stat().st_mode) & 0o6022 == 0
