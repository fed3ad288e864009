import hashlib

import numpy as np


def seeded(name, shape):
    """Deterministic float32 array from a parameter's published name and shape alone."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    n = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("gamma_v", "gamma_l"):
        n = 0.3 + 0.05 * n
    elif leaf == "scale":
        n = 1.0 + 0.1 * n
    elif leaf == "log_scale":
        n = 0.2 + 0.0 * n
    elif leaf == "bias0":
        n = -2.0 + 0.0 * n
    elif leaf == "bias_lang" or "embeddings.weight" in name:
        n = 0.05 * n
    elif leaf == "relative_position_bias_table":
        n = 0.2 * n
    elif leaf == "bias":
        n = 0.02 * n
    elif "dot_product_projection_text" in name:
        n = 0.5 * n
    elif len(shape) == 1:
        n = 1.0 + 0.1 * n  # norm weights
    else:
        n = n / np.sqrt(np.prod(shape[1:]))
    return n.astype(np.float32)


def image(name, height, width):
    """uint8 RGB test picture: smooth colour waves and three flat boxes, from a name alone."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    g = np.random.Generator(np.random.Philox(key=key))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    out = np.zeros((height, width, 3))
    for c in range(3):
        for _ in range(3):
            fy, fx, ph = [*g.uniform(0, 0.15, 2).tolist(), g.uniform(0, 6.28)]
            out[..., c] += np.sin(fy * y + fx * x + ph)
    out = 127.5 + 40 * out
    for _ in range(3):
        x0, y0 = int(g.uniform(0, 0.6) * width), int(g.uniform(0, 0.6) * height)
        w, h = int(g.uniform(0.15, 0.4) * width), int(g.uniform(0.15, 0.4) * height)
        out[y0 : y0 + h, x0 : x0 + w] = g.uniform(0, 255, 3)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
