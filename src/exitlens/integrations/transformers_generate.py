"""A decoder for ``model.generate(..., custom_generate=...)`` of transformers 5, on a plain ``AutoModelForCausalLM``.

transformers prepares inputs, mask, positions, cache, logits processors and stopping criteria, then hands over the
loop. Here is that loop, with the decoder's scores in place of the final logits. Whatever acts on scores in
transformers (repetition penalty, temperature, top-k, top-p) acts on the decoder's, after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exitlens.decoding import BoundDecoder, Decoder, parse_decoder
from exitlens.errors import InputError
from exitlens.models.checkpoint.loading import wrap
from exitlens.models.layered import Layered
from exitlens.models.layout.hooks import record_blocks, undisturbed
from exitlens.models.protocol import LayeredModel

__all__ = ["transformers_generate"]


def transformers_generate(decoder: str | Decoder = "dola:high", *, streamer: Any = None) -> Callable[..., Any]:
    """A loop for ``model.generate(..., custom_generate=...)`` of transformers.

    Make it once and pass it to any number of calls. It finds and checks a model's layers at the first call with it.

    Args:
        decoder: In the grammar of :func:`~exitlens.decoding.parse_decoder`.
        streamer: transformers does not pass the ``streamer`` of ``generate`` to custom loops: give it here.

    Returns:
        The loop. In ``generate`` it raises InputError for what has no meaning with it (beams, an assistant model), and
        UnsupportedModel or ParityError for a model whose layers cannot be read.

    Raises:
        InputError: An unknown decoder.
    """
    return _Loop(parse_decoder(decoder), streamer)


class _Loop:
    def __init__(self, decoder: Decoder, streamer: Any) -> None:
        self.decoder, self.streamer = decoder, streamer
        self._model: Any = None
        self._lm: Layered
        self._scorer: BoundDecoder

    def __repr__(self) -> str:
        return f"transformers_generate(decoder={self.decoder.name!r})"

    def _meet(self, model: Any) -> Layered:
        if self._model is not model:
            self._lm = wrap(model, None)
            self._scorer = BoundDecoder(self._lm, self.decoder)
            self._model = model
        return self._lm

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Callable[[Tensor, Tensor], Tensor],
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        """What transformers calls; returns what its own loops return."""
        config, streamer = generation_config, self.streamer
        if config.num_beams > 1:
            raise InputError(f"num_beams={config.num_beams} has no meaning with decoder {self.decoder.name!r}: use 1")
        if model.config.is_encoder_decoder:
            raise InputError(f"{type(model).__name__} is an encoder-decoder model: use a decoder-only one")
        lm = self._meet(model)
        if streamer is not None:
            streamer.put(input_ids.cpu())
        made = _Made(config)
        pad = config._pad_token_tensor
        ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        going = torch.ones(input_ids.shape[0], dtype=torch.long, device=input_ids.device)
        first = True
        while True:
            hidden: dict[int, Tensor] = {}
            recorded = record_blocks(
                lm.blocks, lm.layout.stream, self._scorer.early, "last", hidden, shape=input_ids.shape, copy=True
            )
            with undisturbed(lm.model), recorded:
                if first:
                    outputs = model._prefill(input_ids, config, model_kwargs)
                else:
                    inputs = model.prepare_inputs_for_generation(
                        input_ids, next_sequence_length=1 if model_kwargs.get("use_cache") else None, **model_kwargs
                    )
                    outputs = model(**inputs, return_dict=True)
            first = False
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=False)
            final = outputs.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
            scores = logits_processor(input_ids, self._scores(lm, final, hidden))
            made.note(outputs, scores, final)
            if config.do_sample:
                tokens = torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)
            else:
                tokens = scores.argmax(-1)
            if ends:
                tokens = tokens * going + pad.to(input_ids.device) * (1 - going)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=-1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            going = going & ~stopping_criteria(input_ids, made.scores)
            del outputs
            if not bool(going.any()):
                break
        if streamer is not None:
            streamer.end()
        return made.output(input_ids, model_kwargs)

    def _scores(self, lm: LayeredModel, final: Tensor, hidden: dict[int, Tensor]) -> Tensor:
        width = lm.vocab_size
        last = {j: h[:, -1] for j, h in hidden.items()}
        scores = self._scorer.scores(final[:, :width].clone(), last).scores
        if width == final.shape[-1]:
            return scores
        # Rows of the unembedding that are no tokens keep their place, and are never chosen.
        return torch.cat([scores, scores.new_full((len(scores), final.shape[-1] - width), -torch.inf)], dim=-1)


class _Made:
    """What ``return_dict_in_generate`` asks for, step by step."""

    def __init__(self, config: Any) -> None:
        self.asked = bool(config.return_dict_in_generate)
        wants = {
            "scores": config.output_scores,
            "logits": config.output_logits,
            "attentions": config.output_attentions,
            "hidden_states": config.output_hidden_states,
        }
        self.kept: dict[str, tuple[Any, ...] | None] = {
            name: () if self.asked and wanted else None for name, wanted in wants.items()
        }

    @property
    def scores(self) -> Any:
        return self.kept["scores"]

    def note(self, outputs: Any, scores: Tensor, final: Tensor) -> None:
        new = {
            "scores": scores,
            "logits": final,
            "attentions": getattr(outputs, "attentions", None),
            "hidden_states": getattr(outputs, "hidden_states", None),
        }
        for name, held in self.kept.items():
            if held is not None:
                self.kept[name] = (*held, new[name])

    def output(self, sequences: Tensor, model_kwargs: dict[str, Any]) -> Any:
        if not self.asked:
            return sequences
        from exitlens.models.checkpoint.pretrained import generate_output

        names = ("cache", "past_key_values", "cache_params")  # by version of transformers, and by kind of model
        cache = next((model_kwargs[name] for name in names if model_kwargs.get(name) is not None), None)
        return generate_output(sequences=sequences, cache=cache, **self.kept)
