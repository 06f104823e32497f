"""Everything that has to be measured on a GPU, in one command of at most eight minutes.

    python benchmarks/gpu.py                          # the first CUDA device; results in $OUT, else build/gpu
    python benchmarks/gpu.py --parts kernel,read      # some parts only
    python benchmarks/gpu.py --small --device cpu     # tiny sizes on the CPU: whether the script itself runs

It needs torch, triton, numpy, safetensors, transformers and tokenizers, and no network: models are random weights of a
Llama-7B's shape, made on the device. After each part `gpu.json` and `gpu.md` are written anew, so that a machine that
is taken away costs one part. A part that fails or runs out of its time leaves one line there and its traceback in
`tracebacks.txt`, and the next one begins. Works that are compared take turns after a warm-up, timed by CUDA events; a
number is the median of the turns. Tables say what was measured: gpu_parts.py beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

LIMIT = 480.0  # seconds of everything together
GRACE = 5.0  # seconds after a part's own, in which it may still end by itself


class TimeUp(Exception):
    """A part has had its seconds."""


def main(given: list[str] | None = None) -> int:
    """Run the parts; 0 when all gave their numbers, else 1."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--parts", default="all", help="comma-separated; a wrong one prints them all")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options.add_argument("--small", action="store_true", help="tiny sizes: seconds on a CPU, and no number to report")
    options.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "build" / "gpu"))
    options.add_argument("--limit", type=float, default=LIMIT, help="seconds of all parts together")
    chosen = options.parse_args(given)
    if chosen.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is compiled: before torch or Triton are imported
    import torch
    from gpu_bench import Bench
    from gpu_parts import PARTS

    names = list(PARTS) if chosen.parts == "all" else [n.strip() for n in chosen.parts.split(",") if n.strip()]
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        options.error(f"unknown part {', '.join(unknown) or chosen.parts!r}: use {', '.join(PARTS)}")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        options.error("this torch sees no CUDA device: use --small --device cpu to see whether the script runs")
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "tracebacks.txt").unlink(missing_ok=True)
    results: dict[str, Any] = {**facts(chosen.device), "small": chosen.small, "parts": {}}
    started = time.monotonic()
    bench = Bench(torch.device(chosen.device), small=chosen.small)
    for name in names:
        left = chosen.limit - (time.monotonic() - started)
        part = PARTS[name]
        most = part.seconds * (10 if chosen.small else 1)  # a processor may be busy with something else
        results["parts"][name] = {"what": part.what, **run(name, part.work, bench, min(most, left), chosen.out)}
        results["seconds"] = round(time.monotonic() - started, 1)
        write(chosen.out, results)
    print((chosen.out / "gpu.md").read_text(encoding="utf-8"))
    return int(any("error" in part for part in results["parts"].values()))


def run(name: str, work: Callable[[Any], None], bench: Any, seconds: float, out: Path) -> dict[str, Any]:
    """One part's rows and seconds; and the line that says why there are no more, where it was stopped."""
    if seconds <= 0:
        return {"rows": [], "seconds": 0.0, "error": "no time was left for it: raise --limit, or name fewer --parts"}
    begun = time.monotonic()
    bench.begin(seconds)
    print(f"{name} (at most {seconds:.0f} s) ...", flush=True)
    found: dict[str, Any] = {"rows": bench.rows}
    try:
        with alarm(seconds + GRACE):
            work(bench)
    except Exception as error:  # noqa: BLE001 - whatever a part meets, the others must be measured
        line = " ".join(str(error).split())[:300]
        found["error"] = f"{type(error).__name__}: {line}"
        with (out / "tracebacks.txt").open("a", encoding="utf-8") as file:
            file.write(f"== {name}\n{traceback.format_exc()}\n")
        print(f"{name} failed: {found['error']}", flush=True)
    found["seconds"] = round(time.monotonic() - begun, 1)
    gc.collect()
    bench.forget()
    return found


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeUp` in what runs longer than ``seconds``; parts look at their time themselves before that."""

    def ring(_signal: int, _frame: Any) -> None:
        raise TimeUp(f"it ran longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def facts(device: str) -> dict[str, Any]:
    """The card, the driver, the versions, the day."""
    import torch
    import transformers

    from exitlens.compute.hardware import describe
    from exitlens.version import __version__

    try:
        import triton

        kernel = str(triton.__version__)
    except ImportError:
        kernel = "none"
    return {
        "card": torch.cuda.get_device_name(0) if device == "cuda" else describe()["processor"],
        "driver": driver() if device == "cuda" else "none",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": kernel,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "exitlens": __version__,
        "date": datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def driver() -> str:
    """The NVIDIA driver's version, as nvidia-smi says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def write(out: Path, results: dict[str, Any]) -> None:
    """``gpu.json`` and ``gpu.md``, each whole at every moment."""
    for name, text in (("gpu.json", json.dumps(results, indent=1) + "\n"), ("gpu.md", markdown(results))):
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(out / name)


def markdown(results: dict[str, Any]) -> str:
    """A heading with the machine, and a table a part."""
    about = ", ".join(f"{key} {results[key]}" for key in ("driver", "torch", "triton", "transformers", "python"))
    lines = [f"# {results['card']}, {results['date']}", "", f"{about}, exitlens {results['exitlens']}.", ""]
    if results["small"]:
        lines += ["**Tiny sizes: these numbers only show that the script runs.**", ""]
    for name, part in results["parts"].items():
        lines += [f"## {name}", "", part["what"], ""]
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        if columns:
            lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(_shown(row.get(key)) for key in columns) + " |" for row in part["rows"]]
            lines += [""]
        if "error" in part:
            lines += [f"**Stopped:** {part['error']}".replace("|", r"\|"), ""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "—"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.exit(main())
