"""A reading of 10^10 rows in 10^5 shards, all finished but the last: it goes on in seconds, and in little memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import tiny

from exitlens.storage.atomic import key_of

# All 100,000 take a minute to make: `EXITLENS_SHARDS=100000` asks for them, else a fifth, in a fifth of the time.
SHARDS = int(os.environ.get("EXITLENS_SHARDS", "20000"))
ROOT = Path(__file__).parents[2]

# In a process of its own, whose memory nobody else uses: what it takes before the reading is resumed is not counted.
RESUME = """
import json, resource, sys, time
from pathlib import Path
from exitlens.data.texts import TextFile
from exitlens.models import load
from exitlens.runs.engine import LocalEngine
from exitlens.studies.corpus.read import CorpusSettings, read_corpus
model, text, out = sys.argv[1:]
lm = load(model, device="cpu", dtype="float32")
source = TextFile(Path(text))
survey = source.survey()
class Engine(LocalEngine):
    def stream(self, task, jobs):
        for job in jobs:
            found.append(job.number)
            yield job, task.run(lm, job)
found = []
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.process_time()  # others may be using the machine
done = read_corpus(Engine(lm), source, out, CorpusSettings(shard_tokens=1), survey=survey)
seconds = time.process_time() - begun
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([seconds, (after - before) / 1024, found, done.tokens, done.shards]))
"""


def resume(model: Path, text: Path, out: Path) -> tuple[float, float, list[int], int, int]:
    done = subprocess.run(
        [sys.executable, "-c", RESUME, str(model), str(text), str(out)], capture_output=True, text=True,
        check=True, timeout=250, env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    seconds, memory, found, tokens, shards = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory, found, tokens, shards


def test_a_reading_of_many_shards_goes_on_at_once(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("a\n" * SHARDS)  # a token, and so a shard, a line
    # What a shard's key is made of is in the manifest of a reading that was begun.
    begun = tmp_path / "begun.txt"
    begun.write_text("a\n")
    resume(model, begun, tmp_path / "small")
    small = json.loads((tmp_path / "small" / "manifest.json").read_text())
    seal = json.loads((tmp_path / "small" / "seals" / "00000.seal.json").read_text())
    identity = {**small["identity"], "text_hash": hashlib.sha256(text.read_bytes()).hexdigest()}
    (out / "shards").mkdir(parents=True)
    (out / "seals").mkdir()
    (out / "manifest.json").write_text(json.dumps({**small, "identity": identity}))
    file = tmp_path / "small" / "shards" / "00000.parquet"
    place = (0, 0)
    for number in range(SHARDS - 1):
        if number % 50_000 == 0:  # a file has no more than some 65,000 names
            first = out / "shards" / f"{number:05d}.parquet"
            first.write_bytes(file.read_bytes())
        else:
            os.link(first, out / "shards" / f"{number:05d}.parquet")
        end = (number, 1)
        facts = {**seal["facts"], "end": end, "last": False, "tokens": SHARDS}
        written = {"key": key_of(2, identity, place), "files": seal["files"], "facts": facts}
        (out / "seals" / f"{number:05d}.seal.json").write_text(json.dumps(written))
        place = end
    seconds, memory, found, tokens, shards = resume(model, text, out)
    assert found == [SHARDS - 1]  # nothing else was read again
    assert shards == SHARDS
    assert tokens == (SHARDS - 1) * SHARDS + 1
    assert seconds < 10 * SHARDS / 100_000 + 0.5
    assert memory < 200
    shutil.rmtree(out)
