"""Random changes of images as they are sampled, each a pure function of the image and its key."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from metaforge.data.class_pool import Pixels
from metaforge.data.random_numbers import Bits, uniforms


def jitter(images: Pixels, keys: Bits, *, shift: float = 0.0, angle: float = 0.0) -> Pixels:
    """Return images, each moved and rotated by random amounts, with bilinear interpolation.

    What comes into view beyond an edge has the values of the edge.

    Args:
        images: uint8 images `[n, C, H, W]`; square if they are rotated.
        keys: The keys of the random amounts `[n]`.
        shift: Largest shift in each direction, as a share of width and height.
        angle: Largest rotation in either direction, in degrees.

    Returns:
        uint8 images `[n, C, H, W]`.

    Example:
        >>> import numpy as np
        >>> from metaforge.data import episode_keys, jitter
        >>> images = np.zeros((4, 1, 28, 28), dtype=np.uint8)
        >>> images[:, :, 10:18, 10:18] = 255
        >>> moved = jitter(images, episode_keys(0, "train", 0, 4), shift=0.1, angle=11.25)
        >>> moved.shape, bool((moved != images).any())
        ((4, 1, 28, 28), True)
    """
    random = 2.0 * uniforms(keys, 3) - 1.0
    turn = random[:, 0] * math.radians(angle)
    # A grid of sampling points has the coordinates -1 and 1 at opposite edges, so a shift by a share s of the width is
    # one by 2 s.
    moves = 2.0 * shift * random[:, 1:]
    inverse = np.stack([np.cos(turn), -np.sin(turn), moves[:, 0], np.sin(turn), np.cos(turn), moves[:, 1]], axis=1)
    theta = torch.from_numpy(inverse.reshape(-1, 2, 3)).float()
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    pixels = torch.from_numpy(images).float()
    moved = grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    out: Pixels = moved.round().clamp(0, 255).to(torch.uint8).numpy()
    return out
