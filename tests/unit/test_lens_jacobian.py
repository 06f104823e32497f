"""Jacobian lenses: what they read, files of ours and published ones, names, and every command that takes a lens."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tests import tiny
from tests.commands import call, done
from tests.unit.lens_model import SmallModel, states
from torch import Tensor

import exitlens
from exitlens.decoding.contrast.controls import StaticLayer
from exitlens.decoding.contrast.early_logits import BoundDecoder
from exitlens.errors import InputError
from exitlens.exits.replay_policies import Cost
from exitlens.exits.shortlist import ExitReader
from exitlens.lenses import readout
from exitlens.lenses.jacobian.lens import JacobianLens, merged
from exitlens.lenses.jacobian.published import read_published, write_published
from exitlens.lenses.lens_names import load_lens, open_lens, own_path
from exitlens.lenses.tuned import TunedLens

N, D = 4, 24


def random_lens(seed: int = 1, texts: int = 3, **changes: Any) -> JacobianLens:
    g = torch.Generator().manual_seed(seed)
    matrices = torch.eye(D) + 0.2 * torch.randn(N, D, D, generator=g)
    facts: dict[str, Any] = {"name": "j", "fingerprint": "small-0", "matrices": matrices, "layers": tuple(range(N))}
    facts |= {"depth": N, "texts": texts, "provenance": {"skip": "16", "texts": json.dumps([f"{seed}"])}}
    return JacobianLens(**{**facts, **changes})


def test_reads_by_the_definition() -> None:
    model, lens = SmallModel(), random_lens()
    hidden = states(model)
    got = readout(model, hidden, lens=lens, stats=("entropy",))["entropy"]
    for row, (layer, h) in enumerate(hidden.items()):
        moved = h if layer == N else h @ lens.matrices[layer].T
        p = torch.softmax(model.logits(moved, layer).double(), -1)
        torch.testing.assert_close(got[row].double(), -(p * p.log()).sum(-1), rtol=1e-4, atol=1e-4)


def test_identity_matrices_are_the_logit_lens() -> None:
    model = SmallModel()
    lens = random_lens(matrices=torch.eye(D).repeat(N, 1, 1))
    one, other = (readout(model, states(model), lens=used, stats=("entropy",))["entropy"] for used in (lens, "logit"))
    torch.testing.assert_close(one, other)


def test_a_file_gives_the_same_lens(tmp_path: Path) -> None:
    lens = random_lens()
    again = load_lens(lens.save(tmp_path / "lens.safetensors"), SmallModel())
    assert isinstance(again, JacobianLens)
    assert again.identity == lens.identity != random_lens(seed=2).identity
    assert (again.layers, again.depth, again.texts, again.provenance) == (lens.layers, N, 3, lens.provenance)
    assert pickle.loads(pickle.dumps(lens)).identity == lens.identity  # noqa: S301 - its own


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": "other"}, "was fitted to model 'other', not to small"),
        ({"depth": 5, "fingerprint": ""}, "5 layers of width 24, but small has 4 of width 24"),
        ({"matrices": torch.eye(8).repeat(N, 1, 1), "fingerprint": ""}, "of width 8, but small has 4 of width 24"),
        ({"layers": (1, 2, 3, 4), "depth": None, "fingerprint": ""}, "layers up to 4 of width 24, but small has 4"),
    ],
)
def test_another_model_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        readout(SmallModel(), states(SmallModel()), lens=random_lens(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"matrices": torch.full((N, D, D), torch.nan)}, "the matrix of layer 0 holds NaN"),
        ({"matrices": torch.zeros(N, D, 3)}, r"shape \(4, 24, 3\)"),
        ({"matrices": torch.zeros(N, D, D, dtype=torch.int32)}, "holds torch.int32"),
        ({"layers": (0, 2, 1, 3)}, "are not in order"),
        ({"depth": 3}, "has layer 3, but its model ends at 3"),
        ({"texts": 0}, "counts 0 texts"),
        ({"estimator": "sideways"}, "unknown estimator 'sideways'"),
    ],
)
def test_forged_parts_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        random_lens(**changes)


@pytest.mark.parametrize(
    "facts", ["[]", "{}", "null", '{"layers": ["a"], "texts": 1}', '{"layers": [0], "texts": true}', "{"]
)
def test_forged_headers_are_refused(tmp_path: Path, facts: str) -> None:
    tensors, head = random_lens().to_tensors()
    save_file(tensors, tmp_path / "f.safetensors", metadata=head | {"facts": facts})
    with pytest.raises(InputError, match="Jacobian lens 'j'"):
        load_lens(tmp_path / "f.safetensors")


def test_merging_weights_by_texts_and_refuses_what_does_not_fit() -> None:
    a, b = random_lens(1, texts=3), random_lens(2, texts=1)
    both = merged([a, b], name="both")
    torch.testing.assert_close(both.matrices, 0.75 * a.matrices + 0.25 * b.matrices)
    assert (both.texts, both.name, json.loads(both.provenance["texts"])) == (4, "both", ["1", "2"])
    for other, said in (
        (random_lens(2, fingerprint="x"), "differ in model"),
        (random_lens(2, estimator="same-position"), "differ in estimator"),
        (random_lens(1), r"a text in common \(1\)"),
        (random_lens(2, provenance={"skip": "4"}), r"differ in skipped positions \(16, 4\)"),
    ):
        with pytest.raises(InputError, match=said):
            merged([a, other])
    with pytest.raises(InputError, match="1 lens to merge"):
        merged([a])


# ---- published files


def published(path: Path, **changes: Any) -> Path:
    fields = {
        "J": {block: torch.full((D, D), float(block)).half() for block in range(3)},
        "n_prompts": 7,
        "source_layers": [0, 1, 2],
        "d_model": D,
    }
    torch.save({**fields, **changes}, path)
    return path


def test_a_published_block_is_the_layer_after_it(tmp_path: Path) -> None:
    lens = load_lens(published(tmp_path / "lens.pt"), SmallModel())
    assert isinstance(lens, JacobianLens)
    assert (lens.layers, lens.depth, lens.texts, lens.estimator) == ((1, 2, 3), N, 7, "summed")
    assert lens.transform(torch.ones(1, D), 3).eq(2.0 * D).all()
    hidden = states(SmallModel())
    with pytest.raises(InputError, match=r"no matrix for layer 0, only for 1-3: name those with --layers"):
        readout(SmallModel(), hidden, lens=lens)
    assert readout(SmallModel(), {j: h for j, h in hidden.items() if j}, lens=lens)["entropy"].shape[0] == 4


@pytest.mark.parametrize("pickled", [True, False])
def test_export_and_back(tmp_path: Path, pickled: bool) -> None:
    lens = random_lens()
    path = tmp_path / ("lens.pt" if pickled else "lens.safetensors")
    assert "layer 0 (the embeddings) is left out" in write_published(lens, path, pickled=pickled)
    again = load_lens(path)
    assert isinstance(again, JacobianLens)
    assert (again.layers, again.texts) == ((1, 2, 3), 3)
    torch.testing.assert_close(again.matrices.float(), lens.matrices[1:], rtol=1e-3, atol=1e-3)
    if pickled:
        found = torch.load(path, weights_only=True)
        assert (sorted(found), found["source_layers"]) == (["J", "d_model", "n_prompts", "source_layers"], [0, 1, 2])
        assert found["J"][0].dtype == torch.float16
        assert found["J"][0].untyped_storage().nbytes() == 2 * D * D  # not a view of all of them


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"J": 3}, "is no Jacobian lens: it holds a dict of J, n_prompts"),
        ({"d_model": 25}, r"J of block 0 has shape \(24, 24\), expected \(25, 25\)"),
        ({"d_model": "x"}, "d_model is 'x'"),
        ({"n_prompts": 0}, "n_prompts is 0"),
        ({"source_layers": [0, 1]}, r"source_layers is \[0, 1\], but J has blocks \[0, 1, 2\]"),
        ({"J": {"a": torch.zeros(D, D)}}, r"keyed by \['a'\]"),
        ({"J": {}}, "keyed by"),
        ({"J": {0: torch.zeros(1, 1).expand(10**6, 10**6)}, "d_model": 10**6, "source_layers": [0]}, "has shape"),
        ({"J": {0: [1, 2]}, "source_layers": [0]}, "J of block 0 is a list"),
        ({"J": {0: torch.full((D, D), torch.inf)}, "source_layers": [0]}, "layer 1 holds NaN or infinity"),
    ],
)
def test_published_fields_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_published(published(tmp_path / "lens.pt", **changes))


def test_extra_plain_values_are_ignored_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lens = load_lens(published(tmp_path / "lens.pt", author="someone", extra=[1, 2]), SmallModel())
    assert lens.provenance["ignored"] == "author, extra"
    assert "also holds author, extra, which is ignored" in caplog.text


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["whole", "extra"])
def test_a_hostile_file_runs_nothing(tmp_path: Path, place: str, legacy: bool) -> None:
    mark = tmp_path / "ran"
    value: Any = _Evil(mark) if place == "whole" else {"J": {0: torch.zeros(2, 2)}, "x": _Evil(mark)}
    torch.save(value, tmp_path / "lens.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="asks for more than tensors and numbers") as caught:
        read_published(tmp_path / "lens.pt")
    assert not mark.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # no advice to run it after all
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Evil(mark)))
    with pytest.raises(InputError, match=r"plain.pt"):
        read_published(tmp_path / "plain.pt")
    assert not mark.exists()


def test_damaged_files(tmp_path: Path) -> None:
    for name, payload in (("empty.pt", b""), ("text.pt", b"not a lens"), ("half.pt", b"PK\x03\x04broken")):
        (tmp_path / name).write_bytes(payload)
        with pytest.raises(InputError, match=name):
            read_published(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02.")
    with pytest.raises(InputError, match=r"zip.pt"):
        read_published(tmp_path / "zip.pt")
    with pytest.raises(InputError, match="no such"):
        read_published(tmp_path / "none.pt")


# ---- names and commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model = tiny.model("llama")
    model.config.max_position_embeddings = 1024  # few-shot prompts have 500 tokens here
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    lines = [f"{word} legs has a cat, and how many {word} has France? None of the {word} is Paris." for word in
             ("Four", "Seven", "How many", "Some", "True", "False", "Two", "All")]  # fmt: skip
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def fitted(folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> dict[str, Any]:
    """What `lens train --method jacobian` prints; the lens is then this model's own."""
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path / "cache"))
    found: dict[str, Any] = done(
        capsys, "lens", "train", "--method", "jacobian", "--text", text, "--length", "24", "--model", folder
    )
    return found


def test_train_show_list_merge_and_export(
    folder: Path, text: Path, fitted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = exitlens.load(folder)
    assert fitted["path"] == str(own_path(lm, "jacobian"))
    assert (fitted["kind"], fitted["layers"], fitted["estimator"]) == ("jacobian", [0, 1, 2], "summed")
    assert fitted["texts"] > 8
    assert [row["texts"] for row in fitted["curve"]][:2] == [4, 8]
    assert not Path(f"{fitted['path']}.part").exists()
    code, out, _ = call(capsys, "lens", "show", fitted["path"], "--json")
    assert json.loads(out) == fitted
    (row,) = json.loads(call(capsys, "lens", "list", "--json")[1])["lenses"]
    assert (row["kind"], row["layers"]) == ("jacobian", 3)
    code, out, _ = call(capsys, "lens", "show", fitted["path"])
    assert code == 0
    assert "held-out" in out
    code, out, err = call(
        capsys, "lens", "export", fitted["path"], "--out", tmp_path / "out.pt", "--format", "jlens-pickle"
    )
    assert (code, out.strip()) == (0, str(tmp_path / "out.pt"))
    assert "layer 0 (the embeddings) is left out" in err
    assert done(capsys, "look", "A cat has", "--model", folder, "--lens", tmp_path / "out.pt", "--layers", "1-3")
    code, _, err = call(capsys, "lens", "merge", fitted["path"], fitted["path"], "--name", "both")
    assert (code, "a text in common" in err) == (2, True)
    other = text.with_name("other.txt")
    other.write_text("The capital of the moon is cheese, says a man who was never there at all.\n", encoding="utf-8")
    options = ["--method", "jacobian", "--length", "24", "--model", folder]
    other_lens = done(capsys, "lens", "train", "--text", other, "--out", tmp_path / "other.safetensors", *options)
    both = done(capsys, "lens", "merge", fitted["path"], tmp_path / "other.safetensors", "--name", "both")
    assert both["texts"] == fitted["texts"] + other_lens["texts"]
    assert isinstance(open_lens("both", lm), JacobianLens)


@pytest.mark.parametrize(
    "command",
    [
        ["look", "How many legs has a cat?", "--choices", "two,four", "--plain"],
        ["look", "A cat has"],
        ["read", "A cat has four legs.", "--stats", "entropy,kl,top_k"],
    ],
)
def test_every_command_takes_it(
    folder: Path, fitted: dict[str, Any], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for lens in ("logit", "jacobian"):
        words = [*command, "--model", str(folder), "--lens", lens]
        if command[0] == "read":
            source = Path(fitted["path"]).with_name("read.txt")
            source.write_text(command[1], encoding="utf-8")
            words[1:2] = ["--text", str(source), "--out", str(source.with_name(lens))]
        shown.append(json.dumps(done(capsys, *words)))
    assert shown[0] != shown[1]


def test_a_word_of_the_other_kind(folder: Path, fitted: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    lm = exitlens.load(folder)
    with pytest.raises(InputError, match="is a Jacobian lens, no tuned lens: leave 'tuned:' out"):
        open_lens(f"tuned:{fitted['path']}", lm)
    assert isinstance(open_lens(f"jacobian:{fitted['path']}", lm), JacobianLens)
    with pytest.raises(InputError, match="no tuned lens for"):
        open_lens("tuned", lm)
    TunedLens("t", lm.fingerprint, torch.zeros(3, 32), torch.zeros(3, 32, 32)).save(own_path(lm))
    assert isinstance(open_lens("tuned", lm), TunedLens)
    code, _, err = call(capsys, "lens", "export", own_path(lm), "--out", "x")
    assert code == 2
    assert "is a tuned lens: only Jacobian lenses are merged and exported" in err


def test_a_hub_id_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXITLENS_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"no lens 'someone/lens/a.pt': .*the Hub cannot be reached"):
        open_lens("someone/lens/a.pt", SmallModel())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "jacobian", "--steps", "3"], "--steps 3 is for --method tuned"),
        (["--length", "64"], "--length 64 is for --method jacobian"),
        (["--method", "jacobian", "--length", "12"], "texts of 12 tokens have no valid position after the first 16"),
        (["--method", "jacobian", "--minutes", "0"], "--minutes 0 leaves no time"),
    ],
)
def test_options_that_do_not_go_together(
    text: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, "lens", "train", "--text", text, "--model", "nowhere", *options)
    assert code == 2
    assert said in err


def test_text_too_short(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("A cat.\nA dog.\n", encoding="utf-8")
    code, _, err = call(
        capsys, "lens", "train", "--method", "jacobian", "--text", tmp_path / "short.txt", "--model", folder
    )
    assert code == 2
    assert "0 pieces of 18 tokens or more (2 texts are too short)" in err


def test_float16_matrices_are_read_in_float32() -> None:
    lens = random_lens(matrices=random_lens().matrices.half())
    h = torch.randn(3, D)
    want: Tensor = h @ lens.matrices[1].float().T
    torch.testing.assert_close(lens.transform(h, 1), want)


def test_contrast_decoders_read_early_layers_through_it(tmp_path: Path) -> None:
    lm = exitlens.wrap(tiny.model("llama"), tiny.tokenizer(), name="llama")
    g = torch.Generator().manual_seed(0)
    matrices = torch.eye(32) + 0.5 * torch.randn(3, 32, 32, generator=g)
    lens = JacobianLens("j", lm.fingerprint, matrices, (0, 1, 2), 3, 1)
    path = lens.save(tmp_path / "lens.safetensors")
    texts = {used: exitlens.generate(lm, ["A cat has"], decoder=f"static:1,lens={used}", max_new_tokens=12)[0].token_ids
             for used in ("logit", path)}  # fmt: skip
    assert texts["logit"] != texts[path]
    bound = BoundDecoder(lm, f"static:1,lens={path}")
    h, final = torch.randn(2, 32, generator=g), torch.randn(2, lm.vocab_size, generator=g)
    plain = StaticLayer(layer=1)(final, lm.logits(h @ matrices[1].T, 1)[None], 3)
    torch.testing.assert_close(bound.scores(final, {1: h}).scores, plain.scores)
    top = JacobianLens("top", lm.fingerprint, matrices[2:], (2,), 3, 1).save(tmp_path / "top.safetensors")
    with pytest.raises(InputError, match="no matrix for layer 1, only for 2"):
        BoundDecoder(lm, f"static:1,lens={top}")


def test_exits_are_read_through_it(folder: Path, fitted: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    lm = exitlens.load(folder)
    lens = open_lens("jacobian", lm)
    assert isinstance(lens, JacobianLens)
    h = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    want = lm.logits(h @ lens.matrices[1].T, 1).float()
    torch.testing.assert_close(ExitReader(lm, lens=lens).show(h, 1).z, want)
    torch.testing.assert_close(ExitReader(lm, lens=lens).show(h, 3).z, lm.logits(h, 3).float())
    torch.testing.assert_close(ExitReader(lm, lens="raw").show(h, 1).z, lm.logits(h, 1, "raw").float())
    assert Cost.of(lm, lens=lens).at_exit == Cost.of(lm).unembed + 2 * 32**2
    questions = exitlens.read_data("facts-qa").questions[:4]
    shares = [exitlens.exits_study(lm, questions, layers=[1], max_new_tokens=4, lens=used).exits_layers
              for used in ("logit", lens)]  # fmt: skip
    assert not shares[0].equals(shares[1])
    top = dataclasses.replace(lens, matrices=lens.matrices[2:], layers=(2,))
    with pytest.raises(InputError, match="no matrix for layer 1, only for 2"):
        exitlens.exits_study(lm, questions, layers=[1], lens=top)
    words = ["generate", "A cat has", "--model", folder, "--exit", "fixed:1", "--max-new-tokens", "12"]
    answers = [done(capsys, *words, *more)[0]["token_ids"] for more in ([], ["--exit-lens", "jacobian"])]
    assert answers[0] != answers[1]
    code, _, err = call(capsys, "generate", "A cat has", "--exit-lens", "jacobian")
    assert code == 2
    assert "--exit-lens jacobian reads exits of --exit alone" in err


def test_a_run_reads_layers_and_exits_through_it(
    folder: Path, fitted: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["--model", folder, "--only", "layers,exits", "--limit", "4", "--max-new-tokens", "4", "--look-limit", "2"]
    words += ["--rule", "sequence", "--judges", "margin:bleu", "--lens", "logit,jacobian", "--exit-lens", "jacobian"]
    code, _, err = call(capsys, "run", *words, "--out", out, "-q")
    assert code == 0, err
    layers = pd.read_parquet(next(out.rglob("layers.parquet")))
    assert set(layers["lens"]) == {"logit", fitted["name"]}
    assert next(out.rglob("exits.parquet")).exists()


def test_a_published_lens_of_another_model_is_refused(tmp_path: Path) -> None:
    mine, other = (
        exitlens.wrap(tiny.model("llama", seed=seed), tiny.tokenizer(), name=f"seed {seed}") for seed in (0, 1)
    )
    texts = [[(11 * i + 5 * k) % 300 for i in range(30)] for k in range(4)]
    lens, _ = exitlens.fit_jacobian_lens(mine, texts, skip=8, held_out=0)
    write_published(lens, tmp_path / "lens.pt", pickled=True)
    again = load_lens(tmp_path / "lens.pt", mine)
    assert isinstance(again, JacobianLens)
    assert again.depth == 3
    with pytest.raises(InputError, match=r"lens 'lens' is another model's: at layer 2 it points elsewhere than seed 1"):
        load_lens(tmp_path / "lens.pt", other)


def test_a_published_matrix_of_layer_n_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    matrices = {block: torch.eye(D).half() + block * torch.ones(D, D).half() for block in range(4)}
    path = published(tmp_path / "lens.pt", J=matrices, source_layers=[0, 1, 2, 3])
    lens = load_lens(path, SmallModel())
    assert isinstance(lens, JacobianLens)
    assert lens.layers == (1, 2, 3)
    assert "has a matrix of layer 4, the model itself, which is left out" in caplog.text
    assert "whether it is small cannot be told" in caplog.text
