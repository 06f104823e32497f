"""Peak memory of extraction, of `exitlens read` and of a stage, as the number of records grows; a process each.

    python benchmarks/memory.py --records 2000,20000              # the tests' tiny model, on the processor
    python benchmarks/memory.py --tasks extract --records 1000 --model smollm2-135m

Tasks: ``extract`` (hidden states of statements into a store), ``read`` (`exitlens read`, a text a record) and ``stage``
(answers with entropies into a run directory, then the entropies into one table). ``grown_mib`` is the peak less the
peak after 64 records of the same task: what is loaded once does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """One process a task and number of records; a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="extract,read,stage", help="comma-separated")
    parser.add_argument("--records", default="2000,20000", help="comma-separated numbers")
    parser.add_argument("--model", default="tiny", help="tiny, or what exitlens --model takes")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.tasks, int(args.records), args.model)))
        return
    for task in args.tasks.split(","):
        for count in args.records.split(","):
            command = [sys.executable, __file__, "--one", "--tasks", task, "--records", count, "--model", args.model]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout.strip().splitlines()[-1], flush=True)


def measure(task: str, count: int, name: str) -> dict[str, Any]:
    """Peak memory of one task, and what of it came after the first 64 records."""
    lm = model(name)
    work = {"extract": extract_states, "read": read_text, "stage": run_stage}[task]
    with tempfile.TemporaryDirectory(prefix="exitlens-bench-") as folder:
        work(lm, 64, Path(folder) / "few")
        before = peak()
        begun = time.perf_counter()
        work(lm, count, Path(folder) / "many")
        seconds = time.perf_counter() - begun
    return {
        "task": task, "records": count, "peak_mib": round(peak()), "grown_mib": round(peak() - before),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def peak() -> float:
    """Peak resident memory of this process [MiB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def model(name: str) -> Any:
    """The tests' tiny Llama, or a model by name."""
    from exitlens.models import load, wrap

    if name != "tiny":
        return load(name)
    sys.path.insert(0, str(ROOT))
    from tests import tiny

    built = tiny.model("llama")
    built.config.max_position_embeddings = 4096
    return wrap(built, tiny.tokenizer(), name="tiny")


def extract_states(lm: Any, count: int, folder: Path) -> None:
    """Statements of about ten words into a store of all layers."""
    from exitlens.data.records import Statement
    from exitlens.runs.engine import LocalEngine
    from exitlens.studies.probes.extraction import extract

    rows = [
        Statement(f"s{i}", f"The capital of region {i} is town {i % 97}.", i % 2, f"t{i % 5}") for i in range(count)
    ]
    extract(LocalEngine(lm), rows, folder)


def read_text(lm: Any, count: int, folder: Path) -> None:
    """A file of lines into shards."""
    from exitlens.data.texts import TextFile
    from exitlens.runs.engine import LocalEngine
    from exitlens.studies.corpus.read import CorpusSettings, read_corpus

    folder.mkdir()
    file = folder / "text.txt"
    with file.open("w", encoding="utf-8") as out:
        out.writelines(f"The capital of region {i} is town {i % 97}.\n" for i in range(count))
    read_corpus(LocalEngine(lm), TextFile(file), folder / "out", CorpusSettings())


def run_stage(lm: Any, count: int, folder: Path) -> None:
    """Answers of four tokens to questions, with the entropy of each layer."""
    from exitlens.runs.directory import RunDirectory
    from exitlens.runs.engine import LocalEngine
    from exitlens.studies.answers.decoder_spec import DecoderSpec
    from exitlens.studies.answers.stage import AskRecord, GenerateStage

    records = [AskRecord(f"q{i}", f"What is {i}?", f"Q: What is {i}?\nA:") for i in range(count)]
    stage = GenerateStage(DecoderSpec.parse("vanilla"), max_new_tokens=4, batch_size=32, entropy=True)
    with RunDirectory.open(folder, {"seed": 0}) as directory:
        done = LocalEngine(lm, directory).map(stage, records, batch_size=32)
        directory.assemble("entropy_tokens", done.tables.files("entropy_tokens"))


if __name__ == "__main__":
    main()
