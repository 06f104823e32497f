"""Model arguments of lm-evaluation-harness, and tokenizers that lack what it takes for granted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import peft
import torch
import transformers as tf
from lm_eval.api.instance import Instance
from tests import tiny
from tokenizers import Tokenizer

from exitlens.errors import InputError
from exitlens.integrations.lm_eval import ExitlensLM
from exitlens.models import wrap

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.wrong_types,
]


def asked(*arguments: Any) -> list[Instance]:
    return [
        Instance(request_type="x", doc={}, arguments=a, idx=i, metadata=("t", i, 1)) for i, a in enumerate(arguments)
    ]


def plain() -> Any:
    """A model whose tokenizer has neither a token that begins nor one that ends a text."""
    model = tiny.model("llama", spread=0.2)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tiny._backend()))
    return wrap(model, tokenizer)


@pytest.mark.parametrize(
    ("name", "says"),
    [("decodr", "did you mean decoder"), ("prefix_token", "prefix_token_id"), ("zzz", "use pretrained")],
)
def test_an_unknown_argument_is_one_line_with_the_nearest_name(name: str, says: str) -> None:
    with pytest.raises(InputError, match=f"unknown model argument '{name}'.*{says}") as found:
        ExitlensLM(pretrained=str(Path("nowhere")), **{name: "sled"})
    assert "\n" not in str(found.value)


def test_a_tokenizer_without_tokens_that_begin_or_end_a_text() -> None:
    lm = plain()
    model = ExitlensLM(pretrained=lm)
    ((value, _),) = model.loglikelihood(asked(("Q: What is true? A:", " None")))
    assert value < 0
    assert model.generate_until(asked(("Q: What", {"until": ["\n"], "max_gen_toks": 3})))
    with pytest.raises(InputError, match="give prefix_token_id=ID") as found:
        model.loglikelihood(asked(("", "Paris")))
    assert "\n" not in str(found.value)
    ((begun, _),) = ExitlensLM(pretrained=lm, prefix_token_id=7).loglikelihood(asked(("", "Paris")))
    ids = torch.tensor([[7, *lm.encode("Paris")]])
    log_p = lm.model(ids).logits.log_softmax(-1)[0, :-1]
    want = log_p.gather(-1, ids[0, 1:, None]).sum()
    assert begun == pytest.approx(float(want), abs=1e-3)


def test_thinking_reaches_the_chat_template_and_is_taken_off_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = wrap(tiny.model("llama", spread=0.2), tiny.tokenizer())
    lm.tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking %} think{% else %} answer{% endif %}"
    turns = [{"role": "user", "content": "Hi"}]
    for asked_for, says in ((True, "Hi think"), (False, "Hi answer"), (None, "Hi answer")):
        more = {"think_end_token": "</think>"} if asked_for else {}
        assert ExitlensLM(pretrained=lm, enable_thinking=asked_for, **more).apply_chat_template(turns) == says
    with pytest.raises(InputError, match="needs think_end_token"):
        ExitlensLM(pretrained=lm, enable_thinking=True)
    model = ExitlensLM(pretrained=lm, enable_thinking=True, think_end_token="</think>")
    from types import SimpleNamespace

    from exitlens.integrations.lm_eval import model as module

    said = SimpleNamespace(text="so it is</think> Paris. More")
    monkeypatch.setattr(module, "generate", lambda _lm, prompts, **_: [said for _ in prompts])
    assert model.generate_until(asked(("Hi", {"until": ["."], "max_gen_toks": 3}))) == ["Paris"]


def test_an_adapter_is_put_on_its_base(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", "llama", spread=0.2)
    model = tiny.model("llama", spread=0.2)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.eval().save_pretrained(tmp_path / "adapter")
    request = asked(("Q: What is true? A:", " A true statement."))
    alone, together = (
        ExitlensLM(pretrained=str(base), dtype="float32", **more).loglikelihood(request)[0][0]
        for more in ({}, {"peft": str(tmp_path / "adapter")})
    )
    tokenizer = tiny.tokenizer()
    context, answer = (tokenizer.encode(text) for text in request[0].args)
    ids = torch.tensor([[*context, *answer]])
    with torch.no_grad():
        log_p = adapted(input_ids=ids).logits.log_softmax(-1)[0, len(context) - 1 : -1]
    want = float(log_p.gather(-1, torch.tensor(answer)[:, None]).sum())
    assert together == pytest.approx(want, abs=1e-3)
    assert abs(together - alone) > 0.01


def test_a_gguf_file_of_a_folder_is_the_one_that_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exitlens.integrations.lm_eval import model as module

    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    seen: list[Any] = []
    monkeypatch.setattr(module, "load", lambda path, **_: seen.append(path) or plain())
    ExitlensLM(pretrained=str(tmp_path), gguf_file="a.gguf")
    assert seen == [str(tmp_path / "a.gguf")]
    with pytest.raises(InputError, match=r"gguf_file='b.gguf': there is no such file"):
        ExitlensLM(pretrained=str(tmp_path), gguf_file="b.gguf")


def test_a_gguf_file_scores_as_the_harness_own_model_does(builtin_path: Path) -> None:
    if builtin_path.suffix != ".gguf":
        pytest.skip("the built-in model is no GGUF file here")
    from lm_eval.models.huggingface import HFLM

    requests = asked(("The capital of France is", " Paris"), ("Bees make", " honey and wax"), ("A", " b"))
    named = {"pretrained": str(builtin_path.parent), "gguf_file": builtin_path.name, "dtype": "float32"}
    own = HFLM(**named, device="cpu", batch_size=1).loglikelihood(requests)
    got = ExitlensLM(**named).loglikelihood(requests)
    for (ours, greedy), (theirs, best) in zip(got, own, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert greedy == best


def test_help_is_there_without_the_harness() -> None:
    program = (
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'lm_eval' else real(name, *more)\n"
        "from exitlens.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "lm-eval", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "pip install 'exitlens[lm-eval]'" in done.stdout
    assert "--model_args pretrained=" in done.stdout
    assert done.stderr == ""
