"""Boxes with which index structures have had trouble, by name."""

from __future__ import annotations

import numpy as np

MOST = float(np.finfo(float).max)
TINIEST = float(np.nextafter(0.0, 1.0))


def from_lower(lower: np.ndarray, extents: np.ndarray | float) -> np.ndarray:
    return np.ascontiguousarray(np.hstack([lower, lower + extents]))


def uniform(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    return from_lower(random.random((n, dims)), random.random((n, dims)) * 0.05)


def all_equal(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    return np.repeat(uniform(random, 1, dims), n, axis=0)


def one_point(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    return np.repeat(from_lower(random.random((1, dims)), 0.0), n, axis=0)


def points(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    return from_lower(random.random((n, dims)), 0.0)


def on_a_line(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    lower = np.zeros((n, dims))
    lower[:, 0] = random.random(n)
    return from_lower(lower, 0.0)


def flat_segments(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    extents = np.zeros((n, dims))
    extents[np.arange(n), random.integers(0, dims, n)] = random.random(n) * 0.1
    return from_lower(random.random((n, dims)), extents)


def huge(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    ends = np.sort(random.choice([-MOST, -1e300, -1.0, 0.0, 1.0, 1e300, MOST], (2, n, dims)), axis=0)
    return np.ascontiguousarray(np.hstack([ends[0], ends[1]]))


def denormal(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    return from_lower(random.integers(0, 1000, (n, dims)) * TINIEST, random.integers(0, 3, (n, dims)) * TINIEST)


def mixed_scales(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    scales = 10.0 ** np.resize([-310, 300, 0, -150, 150], dims)
    return from_lower(random.random((n, dims)) * scales, random.random((n, dims)) * scales * 0.1)


def ascending(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    boxes = uniform(random, n, dims)
    return np.ascontiguousarray(boxes[np.argsort(boxes[:, 0])])


def descending(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    return np.ascontiguousarray(ascending(random, n, dims)[::-1])


def few_places(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    return np.ascontiguousarray(uniform(random, 7, dims)[random.integers(0, 7, n)])


def nested(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    half = np.repeat(random.permutation(n)[:, None] + 1.0, dims, axis=1)
    return np.ascontiguousarray(np.hstack([-half, half]))


def signed_zeros(random: np.random.Generator, n: int, dims: int) -> np.ndarray:
    lower, upper = random.choice([-0.0, 0.0, -1.0], (n, dims)), random.choice([-0.0, 0.0, 1.0], (n, dims))
    return np.ascontiguousarray(np.hstack([lower, upper]))


ALL = {
    shape.__name__: shape
    for shape in (
        uniform, all_equal, one_point, points, on_a_line, flat_segments, huge, denormal, mixed_scales, ascending,
        descending, few_places, nested, signed_zeros,
    )
}  # fmt: skip
