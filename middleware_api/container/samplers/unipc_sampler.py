"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor, and a corrector that costs no guess."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from middleware_api.container.samplers.walk import Walk, towards

Known = list[tuple[Tensor, float]]
"""Guesses and their levels, the newest first."""


def unipc(walk: Walk, x: Tensor) -> Tensor:
    """Predicts by the last guesses, and corrects each latent once its own guess is known."""
    settings, steps = walk.settings.unipc, walk.plan.steps
    move = _MOVES[settings.variant]
    last, order = x, 1
    known: Known = []
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if known:
            x = move(last, known[:order], sigma, clean)
        known = [(clean, sigma), *known][: settings.order]
        order = min(settings.order, i + 1)
        if settings.lower_order_final:
            order = min(order, steps - i)  # the guesses at the end are rough
        last, x = x, move(x, known[:order], after, None)
    return x


def _prepared(
    known: Known, after: float, guess_after: Tensor | None
) -> tuple[float, list[Tensor], list[float]]:
    """A step's length, and how the other guesses differ from the newest and where they lie."""
    clean, sigma = known[0]
    h = math.log(sigma / after)
    differences = [guess - clean for guess, _ in known[1:]]
    ratios = [math.log(sigma / level) / h for _, level in known[1:]]
    if guess_after is not None:
        differences.append(guess_after - clean)
        ratios.append(1.0)
    return h, differences, ratios


def _fixed_move(
    form_of: Callable[[float], float],
    x: Tensor,
    known: Known,
    after: float,
    guess_after: Tensor | None,
) -> Tensor:
    """One step of the paper's B(h) form; with the guess at its end it is the corrector."""
    clean, sigma = known[0]
    h, differences, ratios = _prepared(known, after, guess_after)
    moved = towards(x, clean, sigma, after)
    if not ratios:
        return moved
    form = form_of(-h)
    rights = [value * math.factorial(k) / form for k, value in _phis(h, len(ratios))]
    if len(ratios) == 1:
        weights = [0.5]  # the paper's fixed choice, in place of solving one equation
    else:
        rows = [[r**n for r in ratios] for n in range(len(ratios))]
        weights = _solved(rows, rights)
    for weight, ratio, difference in zip(weights, ratios, differences, strict=True):
        moved = moved - form * (weight / ratio) * difference
    return moved


def _varying_move(x: Tensor, known: Known, after: float, guess_after: Tensor | None) -> Tensor:
    """The form whose coefficients vary with the step's length.

    As in the WebUI the corrector's last term takes the weights of the row before its own.
    """
    clean, sigma = known[0]
    h, differences, ratios = _prepared(known, after, guess_after)
    moved = towards(x, clean, sigma, after)
    if not ratios:
        return moved
    count = len(ratios)
    columns = [[r**k / math.factorial(k + 1) for r in ratios] for k in range(count)]
    inverse = torch.linalg.inv(torch.tensor(columns, dtype=torch.float64).T).tolist()
    phis = [value for _, value in _phis(h, count)]
    scaled = [d / r for d, r in zip(differences, ratios, strict=True)]
    for k in range(count):
        is_end = guess_after is not None and k == count - 1
        row = inverse[max(0, k - 1)] if is_end else inverse[k]
        used = range(count - 1, count) if is_end else range(count - (guess_after is not None))
        for i in used:
            moved = moved - phis[k] * row[i] * scaled[i]
    return moved


_MOVES: dict[str, Callable[[Tensor, Known, float, Tensor | None], Tensor]] = {
    "bh1": partial(_fixed_move, lambda h: h),
    "bh2": partial(_fixed_move, math.expm1),
    "vary_coeff": _varying_move,
}


def _phis(h: float, count: int) -> list[tuple[int, float]]:
    """(k, h * phi_(k+1)(-h) up to sign) for k from 1: the weights of the path's derivatives."""
    value, found = math.expm1(-h), []
    for k in range(1, count + 1):
        value = value / -h - 1 / math.factorial(k)
        found.append((k, value))
    return found


def _solved(rows: list[list[float]], rights: list[float]) -> list[float]:
    matrix = torch.tensor(rows, dtype=torch.float64)
    solved: list[float] = torch.linalg.solve(
        matrix, torch.tensor(rights, dtype=torch.float64)
    ).tolist()
    return solved
