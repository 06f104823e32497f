"""What a probe costs while text is generated: ``python benchmarks/watch.py``.

Every part is timed in the same process, in turn, on the same answers: the model's own token, and what watching adds to
it (keeping the state of the probed layer, its way to the probe, the probe itself). A difference of two whole runs would
be lost in the noise of a machine that others use; the added parts are therefore timed alone.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

import exitlens
from exitlens.decoding import Generation
from exitlens.decoding.stream_states import watch
from exitlens.probes import LinearProbe, Provenance, SavedProbe


def main() -> None:
    """Print milliseconds a token, the probe's milliseconds a token, and their ratio, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompt", default="The history of the lighthouse begins with")
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lm = exitlens.load(options.model)
    layer = lm.n_layers // 2
    torch.manual_seed(0)
    probe = LinearProbe("logistic", torch.randn(lm.d_model), 0.0, Provenance(layer=layer))
    saved = SavedProbe(probe, {}, path=None)  # type: ignore[arg-type]  # never read from a file here
    plain, watched, judged = [], [], []
    for _ in range(options.rounds):
        begun = time.perf_counter()
        (answer,) = lm.generate([options.prompt], max_new_tokens=options.tokens)
        plain.append((time.perf_counter() - begun) / len(answer.token_ids))
        begun, spent = time.perf_counter(), 0.0
        for piece in watch(lm, options.prompt, [layer], max_new_tokens=options.tokens):
            if isinstance(piece, Generation):
                break
            at = time.perf_counter()
            float(saved.p_true(piece.states[:, None]).double()[0])
            spent += time.perf_counter() - at
        watched.append((time.perf_counter() - begun) / options.tokens)
        judged.append(spent / options.tokens)
    token, whole, own = (1000 * float(np.median(times)) for times in (plain, watched, judged))
    print(
        json.dumps(
            {
                "model": lm.name, "tokens": options.tokens, "layer": layer, "ms_a_token": round(token, 3),
                "ms_a_token_watched": round(whole, 3), "ms_probe": round(own, 4), "probe_share": round(own / token, 5),
                "whole_difference": round(whole / token - 1, 4),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
