"""A user's script under mypy and pyright: what is right passes, and each misspelt option is an error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import exitlens

ROOT = Path(__file__).parents[2]
SCRIPT = """\
import exitlens

lm = exitlens.load("smollm2-135m", dtype="float32")
trace = lm.read(["Paris"], layers=[0, 15, 30], lens="logit", stats=("entropy", "kl"))
trace = exitlens.read(lm, "Paris", top_k=3)
trace.save("paris.safetensors")
answers = lm.generate("Paris is", decoder="dola:high", max_new_tokens=8, sampling=exitlens.Sampling(temperature=0.8))
texts: list[str] = [answer.text for answer in exitlens.generate(lm, ["Paris is"], seed=1)]
looked = lm.look("What is the capital of France?", ["Paris", "Rome"], layers="last").layers
total = float(lm.score("Paris is", [" big", " small"], decoder="vanilla")[0].sum())
loop = exitlens.transformers_generate(decoder="dola:high")
for record in exitlens.read_data("facts-qa", limit=8):
    print(record.id, total, looked, loop)
n: int = exitlens.data.read_data("facts-tf").statements[0].label
exitlens.lenses.read(lm, "Paris")
"""

WRONG = (
    'exitlens.load("smollm2-135m", dtyp="float32")',
    'exitlens.wrap(lm.model, lm.tokenizer, label="mine")',
    'lm.read("Paris", layer=[0])',
    'exitlens.read(lm, "Paris", statistics=("entropy",))',
    'lm.generate("Paris is", max_tokens=8)',
    'exitlens.generate(lm, ["Paris is"], temperature=0.8)',
    'lm.look("Which?", ["a", "b"], top=3)',
    'lm.score("Paris is", [" big"], decoders="vanilla")',
    'exitlens.transformers_generate(decodr="dola:high")',
    "exitlens.Sampling(temprature=0.8)",
    "exitlens.no_such_name",
    'lm.reed("Paris")',
)
RIGHT_LINES = len(SCRIPT.splitlines())


def _check(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MYPYPATH": str(Path(exitlens.__file__).parents[1])}
    return subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)


def _mypy(script: Path) -> set[int]:
    """Lines of the script with an error."""
    # With the settings and the cache of `make types`, which is run before: the package need not be read again.
    ours = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    found = _check([sys.executable, "-m", "mypy", *ours, script.name], script.parent)
    assert found.returncode in (0, 1), found.stderr
    return {int(line) for line in re.findall(rf"^{script.name}:(\d+): error", found.stdout, re.MULTILINE)}


def _pyright(script: Path) -> set[int]:
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(Path(exitlens.__file__).parents[1])]}
    (script.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson", script.name]
    found = json.loads(_check(command, script.parent).stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1 for one in found if one["severity"] == "error"}


@pytest.mark.slow
@pytest.mark.parametrize("check", [_mypy, _pyright], ids=["mypy", "pyright"])
def test_misspelt_options_of_a_user_script_are_errors_and_right_ones_are_not(check, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "\n".join(WRONG) + "\n")
    found = check(script)
    assert found == {RIGHT_LINES + 1 + i for i in range(len(WRONG))}
