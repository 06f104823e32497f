"""What a machine with a GPU and little else has is enough for models, lenses, decoding, exits and probes.

Everything else that the package knows is blocked in a process of its own: importing each module of these rooms, and
reading, answering, exiting and fitting with a model made on the spot, must not ask for it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Those of torch's world, and what transformers itself cannot do without.
LIGHT = {"torch", "triton", "numpy", "safetensors", "transformers", "tokenizers", "filelock", "huggingface_hub"}
MODULES = {"scikit-learn": "sklearn", "lm-eval": "lm_eval"}

_BLOCK = """
import importlib, pkgutil, sys

class Without:
    # Answers as if the packages were not installed, which is what libraries that look for them expect.
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""

_IMPORT = """
from exitlens.lenses.kernels.compiled import KERNELS
from exitlens.models.native import compiled_blocks
from exitlens.probes.kinds import _mlp_compiled

kernels = {*KERNELS, *compiled_blocks.KERNELS, *_mlp_compiled.KERNELS}  # loaded where numba is, and only there
for room in ("models", "lenses", "decoding", "exits", "probes"):
    package = importlib.import_module(f"exitlens.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"exitlens.{room}."):
        if module.name not in kernels:
            importlib.import_module(module.name)
assert not kernels & set(sys.modules)
"""

_WORK = """
import numpy as np, torch, transformers
from tests import tiny
from exitlens.decoding import generate
from exitlens.exits.policies import ExitPolicy
from exitlens.exits.session import ExitPrefix
from exitlens.lenses import read
from exitlens.models.forward import passes
from exitlens.models.checkpoint.loading import wrap
from exitlens.probes import fit

torch.manual_seed(0)
model = transformers.LlamaForCausalLM(tiny.FAMILIES["llama"]()).eval()
lm = wrap(model, tiny.tokenizer(), name="tiny")
texts = ["The capital of France is", "How many whiskers does a human have?"]
trace = read(lm, texts, stats=("entropy", "top_k", "logprob", "kl"))
assert trace.layers == (0, 1, 2, 3) and np.isfinite(trace.values["entropy"][:, :, 0]).all()
for decoder in ("vanilla", "dola"):
    assert all(len(answer.token_ids) for answer in generate(lm, texts, decoder=decoder, max_new_tokens=4))
early = ExitPolicy("fixed", layers=(2,))
exits = generate(lm, texts, max_new_tokens=4, open_with=lambda ids: ExitPrefix(lm, ids, early))
assert len(exits) == 2
ids = [lm.encode(f"The capital of France is {word}.") for word in "abcdefghijkl"]
states = torch.cat([batch.hidden[2][:, -1] for batch in passes(lm, ids, layers=[2])])
probe = fit("logistic", states, [0, 1] * 6)
assert 0.0 <= float(probe.predict_proba(states)[0]) <= 1.0
print("done")
"""


def _blocked() -> set[str]:
    """The modules of every requirement of the package and of its extras that are not light."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = [*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)]
    names = {re.split(r"[\[<>=;~! ]", need, maxsplit=1)[0] for need in needs}
    # huggingface_hub, and with it transformers, brings these along.
    return {MODULES.get(name, name.replace("-", "_")) for name in names} - LIGHT - {"httpx", "httpx2"}


def _run(code: str) -> str:
    script = _BLOCK.format(blocked=_blocked()) + code
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "EXITLENS_CACHE": "/nowhere"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_five_rooms_import_and_work_with_the_light_packages_alone() -> None:
    assert {"pandas", "pyarrow", "sklearn", "scipy", "pydantic", "accelerate", "platformdirs"} <= _blocked()
    assert _run(_IMPORT + _WORK).strip().endswith("done")


def test_what_is_blocked_is_really_blocked() -> None:
    assert "No module named 'pandas'" in _run(
        "try:\n    import pandas\nexcept ModuleNotFoundError as error:\n    print(error)\n"
    )
