"""What a run uses of its machine, epoch by epoch: CPU, memory, GPU.

The names are those of MLflow's system metrics, so that its page shows them under that heading.
MLflow's own collector is not used: it would have a run import MLflow, and it counts all GPUs of a
machine, whichever one the run holds.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import psutil

_MB = 1e6


class MachineUse:
    """Measures the machine and this process, since the last call."""

    def __init__(self) -> None:
        """Begin to count."""
        self._process = psutil.Process()
        self._before = self._reading()

    def take(self) -> dict[str, float]:
        """Numbers by MLflow's names; percentages and cores are means since the last call.

        `process_cpu_cores` is how many cores this process and the children that it has waited
        for kept busy; children that still run are not looked for, as that takes 14 ms. A GPU's
        numbers are there if torch has started one: memory in use on the card by everyone, and,
        where the driver's Python interface (`nvidia-ml-py`) is installed, how busy it is now and
        what it draws.
        """
        before, now = self._before, self._reading()
        self._before = now
        seconds = max(now["clock"] - before["clock"], 1e-9)
        everything = max(now["total"] - before["total"], 1e-9)
        memory = psutil.virtual_memory()
        found = {
            "cpu_utilization_percentage": 100 * (now["busy"] - before["busy"]) / everything,
            "system_memory_usage_megabytes": (memory.total - memory.available) / _MB,
            "system_memory_usage_percentage": memory.percent,
            "process_cpu_cores": (now["own"] - before["own"]) / seconds,
            "process_memory_megabytes": now["memory"] / _MB,
            **_gpu(),
        }
        return {f"system/{name}": round(value, 3) for name, value in found.items()}

    def _reading(self) -> dict[str, float]:
        """Clocks and counters now, in seconds, and bytes of memory."""
        cpu = psutil.cpu_times()
        idle = cpu.idle + getattr(cpu, "iowait", 0.0)
        # Linux counts a guest's time in the host's user time already.
        total = sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0)
        times = self._process.cpu_times()
        own = times.user + times.system + times.children_user + times.children_system
        memory = float(self._process.memory_info().rss)
        clock = time.perf_counter()
        return {"clock": clock, "total": total, "busy": total - idle, "own": own, "memory": memory}


def _gpu() -> dict[str, float]:
    """The GPU that this process computes on; nothing if torch has started none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    found = {
        "gpu_0_memory_usage_megabytes": (total - free) / _MB,
        "gpu_0_memory_usage_percentage": 100 * (total - free) / total,
    }
    try:
        found["gpu_0_utilization_percentage"] = float(torch.cuda.utilization())
        found["gpu_0_power_usage_watts"] = torch.cuda.power_draw() / 1000  # of milliwatts
    except Exception:  # noqa: BLE001  no interface, or a card without these; the run goes on
        return found
    return found
