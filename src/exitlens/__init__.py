"""exitlens: look inside a language model layer by layer, and act on what is seen.

    import exitlens

    lm = exitlens.load("smollm2-135m")
    trace = lm.read("The capital of France is", stats=("entropy", "kl"))

The public names and the rooms (``exitlens.lenses``, ``exitlens.probes``, ...) are loaded on first use, so that
``import exitlens`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

# Where each public name lives. Type checkers read the imports below instead; a test compares the two.
_HOME = {
    "Attribution": "lenses.attribution",
    "Dataset": "data.records",
    "ExitlensError": "errors",
    "Generation": "decoding.generation",
    "JacobianLens": "lenses.jacobian.lens",
    "LM": "api",
    "LayeredModel": "models.protocol",
    "RunConfig": "studies.config",
    "Sampling": "decoding.sampling",
    "Trace": "lenses.trace",
    "TunedLens": "lenses.tuned",
    "__version__": "version",
    "attribute": "studies.layers.attribution",
    "compare_runs": "studies.compare.comparison",
    "decoding_study": "studies.decoding.study",
    "entropy_study": "studies.entropy.study",
    "exits_study": "studies.exits.study",
    "fit_jacobian_lens": "lenses.jacobian.fit",
    "generate": "decoding.loop",
    "layers_study": "studies.layers.study",
    "lens_study": "studies.lens_quality.study",
    "load": "api",
    "look": "studies.layers.look",
    "mc_scores": "studies.decoding.multiple_choice",
    "probes_study": "studies.probes.truth",
    "read": "lenses.read_texts",
    "read_data": "data",
    "register_decoder": "decoding.contrast.parse",
    "register_statistic": "lenses.statistics",
    "run": "studies.run",
    "score": "decoding.score",
    "stream": "decoding.loop",
    "trace_answers": "decoding.trace",
    "train_tuned_lens": "lenses.train_tuned",
    "transformers_generate": "integrations.transformers_generate",
    "wrap": "api",
}

if TYPE_CHECKING:
    from exitlens import cli as cli
    from exitlens import compute as compute
    from exitlens import data as data
    from exitlens import decoding as decoding
    from exitlens import errors as errors
    from exitlens import exits as exits
    from exitlens import integrations as integrations
    from exitlens import lenses as lenses
    from exitlens import models as models
    from exitlens import probes as probes
    from exitlens import report as report
    from exitlens import runs as runs
    from exitlens import scoring as scoring
    from exitlens import server as server
    from exitlens import stats as stats
    from exitlens import storage as storage
    from exitlens import studies as studies
    from exitlens.api import LM as LM
    from exitlens.api import load as load
    from exitlens.api import wrap as wrap
    from exitlens.data import read_data as read_data
    from exitlens.data.records import Dataset as Dataset
    from exitlens.decoding.contrast.parse import register_decoder as register_decoder
    from exitlens.decoding.generation import Generation as Generation
    from exitlens.decoding.loop import generate as generate
    from exitlens.decoding.loop import stream as stream
    from exitlens.decoding.sampling import Sampling as Sampling
    from exitlens.decoding.score import score as score
    from exitlens.decoding.trace import trace_answers as trace_answers
    from exitlens.errors import ExitlensError as ExitlensError
    from exitlens.integrations.transformers_generate import transformers_generate as transformers_generate
    from exitlens.lenses.attribution import Attribution as Attribution
    from exitlens.lenses.jacobian.fit import fit_jacobian_lens as fit_jacobian_lens
    from exitlens.lenses.jacobian.lens import JacobianLens as JacobianLens
    from exitlens.lenses.read_texts import read as read
    from exitlens.lenses.statistics import register_statistic as register_statistic
    from exitlens.lenses.trace import Trace as Trace
    from exitlens.lenses.train_tuned import train_tuned_lens as train_tuned_lens
    from exitlens.lenses.tuned import TunedLens as TunedLens
    from exitlens.models.protocol import LayeredModel as LayeredModel
    from exitlens.studies.compare.comparison import compare_runs as compare_runs
    from exitlens.studies.config import RunConfig as RunConfig
    from exitlens.studies.decoding.multiple_choice import mc_scores as mc_scores
    from exitlens.studies.decoding.study import decoding_study as decoding_study
    from exitlens.studies.entropy.study import entropy_study as entropy_study
    from exitlens.studies.exits.study import exits_study as exits_study
    from exitlens.studies.layers.attribution import attribute as attribute
    from exitlens.studies.layers.look import look as look
    from exitlens.studies.layers.study import layers_study as layers_study
    from exitlens.studies.lens_quality.study import lens_study as lens_study
    from exitlens.studies.probes.truth import probes_study as probes_study
    from exitlens.studies.run import run as run
    from exitlens.version import __version__ as __version__

__all__ = list(_HOME)


if not TYPE_CHECKING:  # a checker that sees it takes every misspelt name for one that exists

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module 'exitlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
