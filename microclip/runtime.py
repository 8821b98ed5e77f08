"""What a run needs from the machine: atomic files, locks, seeds, devices and provenance.

Every layer uses some of it, and its parts use each other: a GPU is a lock, a lock is a file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from microclip import paths, settings
from microclip.settings.errors import ResourceError as ResourceError
from microclip.writing import atomic_path as atomic_path
from microclip.writing import disk_full as disk_full
from microclip.writing import made, unwritable
from microclip.writing import whole_folder as whole_folder

if TYPE_CHECKING:
    from filelock import FileLock

    from microclip.settings.datasets import DatasetSettings
    from microclip.settings.study import BackboneSettings

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # NFS without lockd, some FUSE and SMB
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_CPU_FACTS = Path("/proc/cpuinfo")
_FAST_BF16 = re.compile(r"\b(avx512_bf16|amx_bf16|bf16)\b")  # of Intel and AMD; of ARM
_lease: _Lease | None = None  # this process's GPU
_choosing = threading.Lock()  # so that two threads do not choose two GPUs
_RECORDED = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "numpy",
    "scipy",
    "pandas",
    "pillow",
    "snakemake",
    "mlflow",
)


class MissingDataError(FileNotFoundError):
    """A file that an earlier step should have written is missing or damaged."""


class NoLocksError(ResourceError):
    """A file system has no file locks."""


class ServiceError(RuntimeError):
    """An outside service failed or could not be reached."""


class VerificationError(RuntimeError):
    """Results do not agree with what they are checked against."""


@contextlib.contextmanager
def locked(path: Path, *, on_busy: Callable[[], object]) -> Iterator[None]:
    """Hold the lock file `path`; it is released when the process ends, however it ends.

    If another process holds it, call `on_busy` (which may raise), then wait.

    Some disks that the nodes of a cluster share have no locks. There the block runs without one:
    all files are written whole (`atomic_path`), so two writers would lose time, and no result.
    """
    try:
        lock = _lock(path, is_waiting=False)
    except NoLocksError as error:
        log.warning("%s; start no other process that writes there", error)
        yield
        return
    if lock is None:
        on_busy()
        lock = _lock(path, is_waiting=True)
    assert lock is not None
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path, *, is_waiting: bool) -> FileLock | None:
    """Take the lock and return it; None if another process holds it and we do not wait."""
    from filelock import FileLock, Timeout  # not at the top: `--help` must stay fast

    with made(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    # No fallback to a soft lock, which would outlive a killed process. The file stays after the
    # release: if it were removed, a waiting process would lock an inode that no one else can open.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire(blocking=is_waiting)
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise unwritable(error, path.parent) from error
        raise NoLocksError(
            f"cannot lock {path} ({error.strerror}): its file system has none of the locks that "
            "keep two processes from using the same files or GPU"
        ) from error
    return lock


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON that ends with a newline; keys keep their order."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(0, "crops", epoch, index)`."""
    text = json.dumps([seed, *purpose])
    # 63 bits: never negative as a signed 64-bit integer, so torch and numpy both take it.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int, device: str = "cpu") -> Any:
    """A torch.Generator seeded for one purpose."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))


@contextlib.contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators, and restore their states afterwards.

    For libraries that draw from the global generators, such as timm's transforms.
    """
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed: it also seeds the GPU's generator, whose state is not restored here.
    # Before CUDA starts, that puts a stack trace on a list, which takes longer than an icon's view.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def choose_device(name: str) -> str:
    """Return "cpu" or "cuda"; a file lock reserves one GPU for this process until it ends.

    A process that has a GPU keeps it: every further call gives the same one. So does a process that
    it starts, such as `!microclip predict` in a notebook, unless another of its GPUs is free.

    Raises:
        SettingsError: another name than "auto", "cpu" and "cuda".
        ResourceError: "cuda" is requested but no GPU is usable, or all are taken.
    """
    if settings.check_device(name, "the device to run on") == "cpu":
        return "cpu"
    global _lease
    with _choosing:
        if _lease is None:
            pool = visible_gpus()
            if not pool and name == "auto":
                return "cpu"
            _lease = _take_gpu(pool)
        elif _lease.index:
            _use(_lease.index)  # torch keeps the current GPU by thread, and this may be another one
    full_float32()
    return "cuda"


def full_float32() -> None:
    """Keep float32 at its 23 bits on a GPU; by default torch uses TF32's 10 in convolutions.

    A ViT's first layer is a convolution: TF32 there would move edges of the patch graph.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def slow_precision(precision: str, device: str) -> str:
    """A warning of bf16 where no GPU computes it; "" where it is no loss."""
    if precision != "bf16" or device == "cuda" or (device == "auto" and visible_gpus()):
        return ""
    with contextlib.suppress(OSError):  # Linux alone has the file
        if _FAST_BF16.search(_CPU_FACTS.read_text(encoding="utf-8", errors="replace")):
            return ""
    return (
        "precision: bf16 on this CPU, which has no fast bf16, takes several times as long as fp32; "
        "set precision: fp32, or run on a GPU"
    )


def visible_gpus() -> list[str]:
    """Indices or ids of the GPUs that this process may use; none without a driver."""
    named = os.environ.get(_VISIBLE)
    if named is not None:
        # As CUDA reads it: the first entry that names no GPU ends the list. A cluster's scheduler
        # writes "NoDevFiles" for a job without one.
        parts = (part.strip() for part in named.split(","))
        return list(itertools.takewhile(re.compile(r"\d+|(GPU|MIG)-.+").fullmatch, parts))
    return (output("nvidia-smi", "--query-gpu=index", "--format=csv,noheader") or "").split()


@dataclass(frozen=True)
class _Lease:
    """The GPU of this process.

    Attributes:
        index: its number in this process; 0 unless CUDA had started before the GPU was chosen.
        lock: kept referenced, as a collected lock would free the GPU; None if it is the parent's.
    """

    gpu: str
    index: int
    lock: FileLock | None


def _forget_lease() -> None:
    """Start anew in a forked child: filelock has closed its copy, and the lock is the parent's."""
    global _lease, _choosing
    _lease, _choosing = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_lease)


def _take_gpu(pool: list[str]) -> _Lease:
    """Lock a GPU of `pool` and make it torch's "cuda"; after an error nothing is locked."""
    if not pool:
        why = f"{_VISIBLE} is {os.environ[_VISIBLE]!r}" if _VISIBLE in os.environ else "no driver"
        raise ResourceError(
            f"device: cuda was requested, but no GPU is visible ({why}); set device: cpu"
        )
    import torch

    mine = pool
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # The caller's own code already computes on one of them.
        mine = pool[torch.cuda.current_device() :][:1] or pool
    gpu, lock = _lock_gpu(mine)
    before = os.environ.get(_VISIBLE)
    try:
        # CUDA reads the variable when it starts, so it is set before torch touches the GPU.
        os.environ[_VISIBLE] = gpu
        torch.cuda.init()  # type: ignore[no-untyped-call]
        # More than one: CUDA had started before, if only for `torch.cuda.is_available()`, and has
        # not read the variable. The GPU then has the number of its place among those visible.
        index = pool.index(gpu) if torch.cuda.device_count() > 1 else 0
        if index:
            _use(index)
    except (RuntimeError, AssertionError) as error:
        _restore_visible(before)
        if lock is not None:
            lock.release()
        raise ResourceError(
            f"a GPU is listed, but torch cannot use it ({' '.join(str(error).split())}); set "
            "device: cpu to run without it"
        ) from error
    _stay_near(gpu)
    return _Lease(gpu, index, lock)


_PCI = Path("/sys/bus/pci/devices")


def _stay_near(gpu: str) -> None:
    """Keep this process on the CPUs beside its GPU, if several runs share the machine.

    A run that has the machine to itself may use the other CPUs too, and what a scheduler gives to
    its job is its own affair. A failure costs a little speed, so it is passed over.
    """
    is_shared = int(os.environ.get("MICROCLIP_JOBS") or 1) > 1 and not _allocation()
    if not is_shared or not hasattr(os, "sched_setaffinity"):
        return
    bus = output("nvidia-smi", "--query-gpu=pci.bus_id", "--format=csv,noheader", f"--id={gpu}")
    with contextlib.suppress(OSError, ValueError):
        # The driver writes eight digits before the first colon, the kernel four, in small letters.
        device = _PCI / (bus or "").strip().lower()[-len("0000:3b:00.0") :]
        listed = (device / "local_cpulist").read_text(encoding="ascii").strip()
        ends = [[int(end) for end in part.split("-")] for part in listed.split(",")]
        near = {cpu for end in ends for cpu in range(end[0], end[-1] + 1)}
        if near & os.sched_getaffinity(0):
            os.sched_setaffinity(0, near & os.sched_getaffinity(0))


def _use(index: int) -> None:
    import torch

    torch.cuda.set_device(index)


def _restore_visible(before: str | None) -> None:
    if before is None:
        del os.environ[_VISIBLE]
    else:
        os.environ[_VISIBLE] = before


def _lock_gpu(pool: list[str]) -> tuple[str, FileLock | None]:
    """Lock the first free GPU; if none is free, share the one that a parent process holds."""
    folder = Path(tempfile.gettempdir()) / f"microclip-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    holders = {}
    for gpu in pool:
        path = folder / f"{_allocation()}{gpu.replace('/', '_')}.lock"
        lock = _lock(path, is_waiting=False)
        if lock is not None:
            path.write_text(str(os.getpid()), encoding="utf-8")
            return gpu, lock
        holders[gpu] = path.read_text(encoding="utf-8").strip()
    import psutil

    parents = {str(parent.pid) for parent in psutil.Process().parents()}
    for gpu, holder in holders.items():
        if holder in parents:
            return gpu, None
    taken = ", ".join(f"GPU {gpu} by process {holder}" for gpu, holder in holders.items())
    raise ResourceError(
        f"all {len(pool)} GPUs are in use by other runs ({taken}); wait for one to end, or set "
        "device: cpu; with Snakemake, lower --resources gpu="
    )


def _allocation() -> str:
    """What a scheduler's job puts before a GPU's name: in each of them the first GPU may be "0"."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"slurm-{job}-" if job else ""


def n_cpus() -> int:
    """CPUs to compute on: MICROCLIP_THREADS, or those that this process may use."""
    if named := os.environ.get("MICROCLIP_THREADS"):
        return int(named)
    # Linux alone limits a process to some CPUs.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(n: int | None) -> None:
    """Limit torch to `n` threads; None lets torch choose."""
    if n is not None:
        import torch

        torch.set_num_threads(n)


def use_all_cpus() -> None:
    """Let torch use every CPU that this process may use, or MICROCLIP_THREADS of them.

    Snakemake sets OMP_NUM_THREADS to a job's cores, but the documented `--cores 1` means one job
    at a time, not one CPU.
    """
    limit_threads(n_cpus())


def reset_peak_memory() -> None:
    """Begin to measure the GPU's peak memory anew; the process's cannot be reset."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mib() -> float:
    """Peak memory in MiB: the GPU's since its reset if CUDA is in use, else the process's.

    The process's is its greatest resident memory since it started, loading and testing included.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def output(*command: str) -> str | None:
    """What a program prints, run in the project's folder; None if it fails or does not exist."""
    try:
        done = subprocess.run(
            command,
            cwd=paths.project_root(),
            # An installed package may lie inside a repository of something else.
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(Path(__file__).resolve().parent)},
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def _version(package: str) -> str | None:
    """An installed package's version; every run records it, and to read it takes milliseconds."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class Machine(TypedDict):
    """The code, the packages and the machine that made a run."""

    commit: str | None
    dirty: bool
    python: str
    platform: str
    cpus: int | None
    gpu: str | None
    tf32: bool | None  # may a GPU shorten float32? None without a GPU
    packages: dict[str, str | None]  # name -> version, None if not installed


def _allows_tf32() -> bool:
    import torch

    return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


def record() -> Machine:
    """Describe this process: commit, package versions, platform, device."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    return {
        "commit": output("git", "rev-parse", "HEAD"),
        "dirty": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch is not None and on_gpu else None,
        "tf32": _allows_tf32() if on_gpu else None,
        "packages": {name: _version(name) for name in _RECORDED},
    }


# Snakemake gets these hashes as parameters of its rules, not the files' times: a fresh clone,
# a change of branch or a copy changes the times of files whose bytes are the same.
@cache
def content(path: Path) -> str:
    """Hash of a file's or folder's bytes; "" if there is none."""
    if path.is_file():
        return sha256(path)
    files = sorted(found for found in path.rglob("*") if found.is_file())
    return settings.digest([[str(f.relative_to(path)), sha256(f)] for f in files]) if files else ""


def dataset_files(dataset: DatasetSettings) -> str:
    """Hash of an icon dataset's drawings; "" for other sources, whose manifest names the images."""
    if dataset.source.kind == "icons":
        return content(paths.resource(f"{paths.ICONS}/{dataset.source.drawings}"))
    return ""


def backbone_files(backbone: BackboneSettings) -> list[str]:
    """Hashes of a backbone's local files."""
    return [content(path) for path in backbone.files.values()]


def version() -> str:
    """Version of the installed package."""
    return importlib.metadata.version("microclip")


def duration(seconds: float, *, decimals: bool = False) -> str:
    """A time for people: "45 s" (with decimals "44.8 s", "0.06 s"), "3 min 05 s", "2 h 13 min"."""
    if decimals and seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
