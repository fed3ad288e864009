"""Alignment of phrases and tokens: the tokens of a phrase in a tokenised prompt, and its score from their logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glip_model.prompts import Prompt
from glip_model.structures import CharSpans


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model reads it."""

    prompt: Prompt
    input_ids: Tensor
    """(T,) int64 with [CLS] and [SEP]."""
    positive_map: Tensor
    """(P, T) bool; the row of a phrase that truncation took is empty."""


def tokenize_prompt(tokenizer: Any, prompt: Prompt, max_tokens: int) -> TokenizedPrompt:
    """Tokenise a prompt, cut at ``max_tokens``, and map its phrases to tokens."""
    encoded = tokenizer(prompt.text, truncation=True, max_length=max_tokens, return_offsets_mapping=True)
    length = len(encoded["input_ids"])
    char_to_token: dict[int, int] = {}
    for token, (start, end) in enumerate(encoded["offset_mapping"]):
        for char in range(start, end):
            # Some characters become several tokens, such as Hangul; as published, the first one counts.
            char_to_token.setdefault(char, token)
    positive_map = torch.zeros(len(prompt.char_spans), length, dtype=torch.bool)
    for row, spans in enumerate(prompt.char_spans):
        for start, end in token_spans(char_to_token, spans):
            positive_map[row, start:end] = True
    return TokenizedPrompt(prompt, torch.tensor(encoded["input_ids"], dtype=torch.int64), positive_map)


def token_spans(char_to_token: dict[int, int], char_spans: CharSpans) -> list[tuple[int, int]]:
    """Translate character pieces to half-open token pieces.

    A character on white space has no token. As published, the start then looks one and two characters further right
    and the end one and two further left; a piece that still finds none is left out, and so is one that truncation
    took.
    """
    found = []
    for start, end in char_spans:
        first = next((char_to_token[c] for c in (start, start + 1, start + 2) if c in char_to_token), None)
        last = next((char_to_token[c] for c in (end - 1, end - 2, end - 3) if c in char_to_token), None)
        if first is not None and last is not None and first <= last:
            found.append((first, last + 1))
    return found


def phrase_scores(token_logits: Tensor, positive_map: Tensor) -> Tensor:
    """Score every anchor against every phrase.

    A phrase scores the mean of its tokens' sigmoids; one that lost all its tokens to truncation scores 0, where the
    published code gives NaN.

    Args:
        token_logits: (B, A, T) float, anchor-token alignment before the sigmoid.
        positive_map: (B, P, T) bool, True where token t belongs to phrase p.

    Returns:
        (B, A, P) float32 in [0, 1].

    Raises:
        ValueError: the two tensors disagree on B or T.

    Source: GLIP (Li et al., 2022), section 3.1; SCORE_AGG "MEAN" in the published configs.
    """
    batch, _, tokens = token_logits.shape
    if positive_map.shape[0] != batch or positive_map.shape[2] != tokens:
        raise ValueError(
            f"positive_map must be (B, P, T) = ({batch}, *, {tokens}) to match token_logits, "
            f"got {tuple(positive_map.shape)}"
        )
    weights = positive_map.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1.0)
    with torch.autocast(token_logits.device.type, enabled=False):  # the product would be rounded to half precision
        # The mean is over probabilities, not over logits.
        return token_logits.float().sigmoid() @ weights.transpose(1, 2)
