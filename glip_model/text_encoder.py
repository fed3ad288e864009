"""The text side: a BERT-type encoder of transformers, its tokenizer, and a cache of states for a frozen encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glip_model.config import TextConfig
from glip_model.pretrained import resolve_source
from glip_model.transfer import send

SEPARATOR = ". "
"""Stands between the segments of a prompt."""
KNOWN_WORDS = "a photo of a dog"
"""Every tokenizer of English captions has tokens for some of these words."""
PADDED_TOKENS = 128
"""Embedding tables may be longer than the vocabulary by less than this, to be a multiple of a round number."""
_CACHED_ROWS, _CACHED_WIDTH = 8, 8
"""Strings that the cache encodes at once, and the step of their padded length. Matrix products round differently for
other shapes; with a few fixed ones the states of a string do not depend on which strings happened to be with it."""


class TextEncoder(nn.Module):
    """BERT without its pooler; built from the config alone, so that no weights are fetched."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.config = config
        self.body = BertModel(
            BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.intermediate_size,
                max_position_embeddings=config.max_position_embeddings,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
            ),
            add_pooling_layer=False,
        )
        if config.frozen:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> TextEncoder:
        """Switch modes; a frozen encoder stays in eval mode."""
        super().train(mode and not self.config.frozen)
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode tokens.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) bool.

        Returns:
            (B, T, hidden_size) last hidden states; those of padding are garbage and stay unmasked.
        """
        # Of a mask of tokens, transformers asks whether it hides any, and waits for the answer; of one of pairs not.
        mask = attention_mask.long() if attention_mask.device.type == "cpu" else _pairs(attention_mask)
        states: Tensor = self.body(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return states


def _pairs(mask: Tensor) -> Tensor:
    """Return (B, 1, T, T) bool, which tokens may look at which, of the tokens that are real (B, T)."""
    return mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1)


def load_tokenizer(source: str | Path, vocab_size: int) -> Any:
    """Load a fast WordPiece tokenizer from a folder, ``package:`` path or hub id, without truncation or padding.

    Args:
        source: where its files are.
        vocab_size: tokens that the model knows.

    Raises:
        ValueError: there is none, it is not a fast one, so characters cannot be mapped to tokens, or it is not the
            model's.
    """
    from transformers import AutoTokenizer, BertConfig

    try:
        # With a config given it does not read the folder's: ours is none of transformers'.
        tokenizer = AutoTokenizer.from_pretrained(resolve_source(str(source)), config=BertConfig())
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:  # of broken JSON
        raise ValueError(
            f"{source}: no tokenizer could be loaded from there: {error}; are its files (tokenizer.json, "
            "tokenizer_config.json) whole?"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"{source}: needs a fast tokenizer (tokenizer.json) to map characters to tokens")
    # Some tokenizer files have truncation and padding baked in; the project decides both for itself.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.model_max_length = int(1e9)
    if not vocab_size - PADDED_TOKENS < len(tokenizer) <= vocab_size:
        raise ValueError(
            f"{source}: its tokenizer has {len(tokenizer)} tokens, but the model knows {vocab_size}; put the tokenizer "
            "files (tokenizer.json, tokenizer_config.json) of the model there"
        )
    check_known_words(tokenizer, source)
    ids = tokenizer(KNOWN_WORDS)["input_ids"]
    if (ids[0], ids[-1]) != (tokenizer.cls_token_id, tokenizer.sep_token_id):
        raise ValueError(f"{source}: its tokenizer does not put a text between [CLS] and [SEP], as BERT's does")
    return tokenizer


def check_known_words(tokenizer: Any, source: str | Path) -> None:
    """Refuse a tokenizer without words, as transformers builds from a folder without a vocabulary.

    All prompts would look alike to it.

    Raises:
        ValueError: it knows none of ``KNOWN_WORDS``.
    """
    ids = tokenizer(KNOWN_WORDS, add_special_tokens=False)["input_ids"]
    if all(token == tokenizer.unk_token_id for token in ids):
        raise ValueError(
            f"{source}: the tokenizer there knows none of the words {KNOWN_WORDS!r}; are its files (tokenizer.json or "
            "vocab.txt) missing? put those of the model there"
        )


class TextStateCache:
    """States of prompts under a frozen encoder, each string encoded once and kept while there is room.

    With ``encoding: joint`` a prompt is one string. With ``segments`` each segment is encoded alone, as
    ``[CLS] segment . [SEP]`` (the last one without a period, like the prompt), and the states are put together so
    that their tokens are exactly those of the whole prompt: [CLS] of the first segment, the inner tokens of all, [SEP]
    of the last.

    Args:
        encoder: must not change while the cache lives.
        tokenizer: of the encoder's vocabulary.
        capacity: bytes kept at most, on the encoder's device; what is used the longest ago goes first.
    """

    def __init__(self, encoder: TextEncoder, tokenizer: Any, capacity: int = 1 << 29) -> None:
        self.encoder, self.tokenizer, self.capacity = encoder, tokenizer, capacity
        self._states: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Sequence[str]]) -> list[Tensor]:
        """Return (T, hidden_size) per prompt, T as the joint tokenisation cut at ``max_tokens``.

        Args:
            prompts: the segments of each prompt, none of them empty of text.
        """
        texts = [self._strings(segments) for segments in prompts]
        self._encode_missing([text for strings in texts for text in strings])
        joined = [self._join([self._states[text] for text in strings]) for strings in texts]
        while self._bytes > self.capacity:
            self._bytes -= self._states.popitem(last=False)[1].nbytes
        return joined

    def _strings(self, segments: Sequence[str]) -> list[str]:
        if self.encoder.config.encoding == "joint":
            return [SEPARATOR.join(segments)]
        # The period belongs to the segment before it; the last segment has none in the joint prompt either.
        return [*(segment + "." for segment in segments[:-1]), segments[-1]]

    def _join(self, states: list[Tensor]) -> Tensor:
        pieces = [state[1:-1] for state in states]
        whole = torch.cat([states[0][:1], *pieces, states[-1][-1:]])
        limit = self.encoder.config.max_tokens
        return whole if len(whole) <= limit else torch.cat([whole[: limit - 1], whole[-1:]])

    def _encode_missing(self, texts: list[str]) -> None:
        for text in texts:
            if text in self._states:
                self._states.move_to_end(text)
        missing = list(dict.fromkeys(text for text in texts if text not in self._states))
        if not missing:
            return
        device = next(self.encoder.parameters()).device
        was_training = self.encoder.training
        self.encoder.eval()
        limit = self.encoder.config.max_tokens
        by_width: dict[int, list[tuple[str, list[int]]]] = {}
        for text in missing:
            ids = self.tokenizer(text, truncation=True, max_length=limit)["input_ids"]
            width = min(-(-len(ids) // _CACHED_WIDTH) * _CACHED_WIDTH, limit)
            by_width.setdefault(width, []).append((text, ids))
        for width, strings in by_width.items():
            for start in range(0, len(strings), _CACHED_ROWS):
                self._encode_rows(strings[start : start + _CACHED_ROWS], width, device)
        self.encoder.train(was_training)

    def _encode_rows(self, strings: list[tuple[str, list[int]]], width: int, device: torch.device) -> None:
        # Rows without a string hold one padding token, so that their attention has something to look at.
        rows = [ids for _, ids in strings] + [[0]] * (_CACHED_ROWS - len(strings))
        input_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        states = self.encoder(send(input_ids, device), send(mask, device))
        for (text, ids), state in zip(strings, states, strict=False):
            self._states[text] = state[: len(ids)].clone()
            self._bytes += self._states[text].nbytes
