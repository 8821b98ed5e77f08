"""A real Slurm on one machine: munge, a controller, and a node with a GPU that is none."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil

from tests.fixtures.waiting import waited

# Jobs find the configuration here alone: the executor's job step removes SLURM_CONF, like all of
# Slurm's variables, before it calls srun.
CONFIGURATION = Path("/etc/slurm")
MARK = "# Written by microclip's tests (tests/slurm), which delete it.\n"
FILES = ("slurm.conf", "gres.conf")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
SECONDS = 180.0
JOB = "JobID:6,State:11,TimeUsed:8,TimeLimit:10,NumCPUs:5,MinMemory:10,tres-per-job:14,Comment:90"


def lacking() -> str:
    """Why no Slurm can be started here; "" if one can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}; `make test-slurm` installs Slurm as root on Debian"
    if os.geteuid() != 0:
        return "only root can start Slurm's daemons"
    for path in (CONFIGURATION / name for name in FILES):
        if path.exists() and not path.read_text().startswith(MARK):
            return f"{path} is there already: this machine belongs to a cluster"
    return ""


class Slurm:
    """The daemons, with all their files but the configuration in one folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` must have a short path: there is a socket in it."""
        self.folder = folder
        self._n_cpus = os.cpu_count() or 1

    def start(self) -> None:
        """Start everything and wait until the node is idle."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self._start_munge()
        CONFIGURATION.mkdir(exist_ok=True)
        (CONFIGURATION / "slurm.conf").write_text(self._configuration())
        gpu = "NodeName=localhost Name=gpu File=/dev/null\n"
        (CONFIGURATION / "gres.conf").write_text(MARK + gpu)
        self.start_controller()
        subprocess.run(["slurmd", "-N", "localhost", "-L", self.folder / "node.log"], check=True)
        assert waited(lambda: self.node() == "idle", SECONDS), self.logs()

    def _start_munge(self) -> None:
        own = self.folder / "munge"
        own.mkdir(mode=0o755)
        (own / "key").write_bytes(os.urandom(1024))
        (own / "key").chmod(0o400)
        for path in (own, own / "key"):
            shutil.chown(path, "munge", "munge")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid"}
        files |= {"seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={own / name}" for option, name in files.items()]
        program = shutil.which("munged")
        # --force: in a container, a folder above may be writable for others.
        command = ["runuser", "-u", "munge", "--", str(program), "--force", *options]
        subprocess.run(command, check=True)

    def _configuration(self) -> str:
        own = self.folder
        memory = min(20000, int(psutil.virtual_memory().total / 1e6 * 0.9))
        return MARK + "\n".join(
            (
                "ClusterName=one",
                "SlurmctldHost=localhost",
                "SlurmUser=root",
                "SlurmdUser=root",
                "SlurmctldPort=26817",  # beside another one's
                "SlurmdPort=26818",
                f"AuthInfo=socket={own}/munge/socket",
                f"StateSaveLocation={own}/state",
                f"SlurmdSpoolDir={own}/spool",
                f"SlurmctldPidFile={own}/controller.pid",
                f"SlurmdPidFile={own}/node.pid",
                "ProctrackType=proctrack/linuxproc",
                "TaskPlugin=task/none",
                "SelectType=select/cons_tres",
                "SelectTypeParameters=CR_Core",
                "SchedulerType=sched/backfill",
                "ReturnToService=2",
                "MpiDefault=none",
                "MinJobAge=7200",  # seconds that the table of jobs keeps those that have ended
                "KillWait=30",  # seconds between SIGTERM and SIGKILL, as by default
                "JobAcctGatherType=jobacct_gather/none",
                "AccountingStorageType=accounting_storage/none",
                "GresTypes=gpu",
                f"NodeName=localhost CPUs={self._n_cpus} RealMemory={memory} Gres=gpu:1",
                "PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP",
                "",
            )
        )

    def start_controller(self) -> None:
        """Start the controller and wait until it answers."""
        subprocess.run(["slurmctld", "-L", self.folder / "controller.log"], check=True)
        assert waited(lambda: self.node() != "", SECONDS), self.logs()

    def stop_controller(self) -> None:
        """Stop the controller; jobs on the node go on."""
        self._stop(self.folder / "controller.pid")

    def stop(self) -> None:
        """Cancel all jobs, stop the daemons, delete the configuration."""
        subprocess.run(["scancel", "--user=root", "--full"], check=False, timeout=60)
        waited(lambda: not self.said("squeue", "--noheader"), 30)
        for name in ("node.pid", "controller.pid", "munge/pid"):
            self._stop(self.folder / name)
        for name in FILES:
            (CONFIGURATION / name).unlink(missing_ok=True)

    def _stop(self, file: Path) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            daemon = psutil.Process(int(file.read_text()))
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(psutil.TimeoutExpired):
                daemon.wait(30)

    def said(self, *command: str) -> str:
        """What one of Slurm's programs prints; "" if it fails."""
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        return done.stdout.strip() if done.returncode == 0 else ""

    def node(self) -> str:
        """The node's state; "" if the controller does not answer."""
        return self.said("sinfo", "--noheader", "--format=%T")

    def drain(self, *, is_drained: bool) -> None:
        """Let the node take no more jobs, or take them again."""
        state = ["state=drain", "reason=test"] if is_drained else ["state=resume"]
        subprocess.run(["scontrol", "update", "nodename=localhost", *state], check=True)

    def limit(self, rule: str, *, minutes: int) -> None:
        """Change the time limit of the running job of a rule, as only root may."""
        running = self.said("squeue", "--noheader", "--states=R", "--Format=JobID:10,Comment:90")
        (job,) = [line.split()[0] for line in running.splitlines() if rule in line]
        command = ["scontrol", "update", f"jobid={job}", f"timelimit={minutes}"]
        subprocess.run(command, check=True)

    def table(self) -> str:
        """All jobs, one a line, with a title."""
        return self.said("squeue", "--states=all", "--sort=i", f"--Format={JOB}")

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
