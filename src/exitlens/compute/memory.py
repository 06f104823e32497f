"""How much memory is free, on the processor and on an accelerator."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["free_bytes"]


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be had on ``device`` now; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    free = _meminfo("MemAvailable")
    limit = _cgroup()
    found = [value for value in (free, limit) if value is not None]
    return min(found) if found else None


def _meminfo(key: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup() -> int | None:
    """What the container's limit leaves; file pages that it counts could be dropped."""
    folder = Path("/sys/fs/cgroup")
    try:
        most = (folder / "memory.max").read_text(encoding="utf-8").strip()
        if most == "max":
            return None
        used = int((folder / "memory.current").read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        return max(0, int(most) - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
