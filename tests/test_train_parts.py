"""The parts of a training that can be looked at alone: captions, sizes, order, rates, loss."""

from __future__ import annotations

import io
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from middleware_api.container.samplers.prediction import Prediction
from middleware_api.container.training.buckets import bucket_sizes, cut_of, fitted, nearest_size
from middleware_api.container.training.captions import (
    class_caption,
    instance_caption,
    shuffled,
    words_of_name,
)
from middleware_api.container.training.noise import NoiseLoss, Shares, prior_weight
from middleware_api.container.training.pictures import UnreadablePicture, read_picture
from middleware_api.container.training.plan import Plan
from middleware_api.container.training.rates import rate_share
from middleware_api.container.training.report import LossCurve
from middleware_api.container.training.sampler import sampler_of
from middleware_api.training_fields import LR_SCHEDULERS, ConceptSettings, TrainSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("concept", "instance", "of_class"),
    [
        ({}, "own words", "own words"),
        ({"instance_prompt": "a cat"}, "a cat", "own words"),
        ({"instance_prompt": "x, [filewords]"}, "x, own words", "own words"),
        ({"instance_token": "zwx"}, "zwx, own words", "own words"),
        (
            {
                "instance_prompt": "a cat, [filewords]",
                "instance_token": "zwx",
                "class_token": "cat",
            },
            "a zwx cat, own words",
            "cat, own words",
        ),
        (
            {"class_prompt": "a zwx here", "instance_token": "zwx", "class_token": "dog"},
            "zwx dog, own words",
            "a dog here",
        ),
    ],
)
def test_captions(concept: dict[str, str], instance: str, of_class: str) -> None:
    settings = ConceptSettings(**concept)  # type: ignore[arg-type]
    assert instance_caption(settings, "own words") == instance
    assert class_caption(settings, "own words") == of_class


def test_a_files_name_is_its_caption_and_tags_are_shuffled_behind_the_first() -> None:
    assert words_of_name("0012-a_red cat.png") == "a red cat"
    assert words_of_name("12.png") == "12"
    mixed = {shuffled("a, b, c, d", random.Random(seed)) for seed in range(40)}
    assert len(mixed) == 6
    assert all(caption.startswith("a, ") for caption in mixed)


def test_pictures_keep_their_shape_and_are_cut_around_their_middle() -> None:
    sizes = bucket_sizes(512, 8)
    assert sizes[0] == (512, 512)
    assert all(side % 64 == 0 for size in sizes for side in size)
    assert all(width * height <= 512 * 512 for width, height in sizes)
    assert nearest_size((1600, 900), sizes) == (640, 384)
    assert nearest_size((900, 1600), sizes) == (384, 640)
    assert nearest_size((50, 51), sizes) == (512, 512)
    picture = Image.new("L", (300, 100))
    picture.paste(255, (100, 0, 200, 100))
    assert fitted(picture, (64, 64)).getextrema()[0] > 200  # blurred at its edges
    cut = cut_of((300, 100), (64, 64))
    assert (cut.scaled, cut.left, cut.top) == ((192, 64), 64, 0)


def test_a_picture_is_turned_upright_and_put_on_white() -> None:
    content = io.BytesIO()
    tag = Image.Exif()
    tag[0x0112] = 6  # lies on its side
    Image.new("RGB", (30, 10), "red").save(content, "JPEG", exif=tag)
    assert read_picture(content.getvalue()).size == (10, 30)
    content = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(content, "PNG")
    assert read_picture(content.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(UnreadablePicture):
        read_picture(b"GIF89a")


def test_each_epoch_shows_each_picture_once_and_a_batch_has_one_shape() -> None:
    sizes = [(64, 64)] * 5 + [(96, 32)] * 3
    plan = Plan(sizes, epochs=3, batch_size=2, accumulation=4, seed=1)
    batches = [batch for step in range(plan.steps) for batch in plan.batches(step)]
    assert [batch.number for batch in batches] == list(range(15))
    for epoch in range(3):
        shown = [batch.pictures for batch in batches if batch.epoch == epoch]
        assert Counter(number for pictures in shown for number in pictures) == Counter(range(8))
        assert all(len({sizes[number] for number in pictures}) == 1 for pictures in shown)
    assert plan.steps == 4
    orders = {tuple(b.pictures for b in batches if b.epoch == epoch) for epoch in range(3)}
    assert len(orders) == 3


@pytest.mark.parametrize("scheduler", LR_SCHEDULERS)
def test_rates_begin_and_end_as_their_schedule_says(scheduler: str) -> None:
    settings = TrainSettings(
        lr_scheduler=scheduler, lr_warmup_steps=20, learning_rate_min=1e-5, lr_factor=0.25
    )
    share = rate_share(settings, 1e-3, steps=100, pictures_a_step=2)
    shares = [share(step) for step in range(100)]
    assert all(0 <= each <= 1 for each in shares)
    warms = scheduler in (
        *("constant_with_warmup", "linear_with_warmup", "cosine", "cosine_with_restarts"),
        "polynomial",
    )
    first = 1 / 11 if warms else {"constant": 0.25, "linear": 0.25}.get(scheduler, 1.0)
    assert shares[0] == pytest.approx(first)
    if warms:
        assert shares[10] == pytest.approx(1, abs=0.02)
    steady = scheduler in ("constant", "constant_with_warmup", "linear")
    last = 1.0 if steady else 0.07 if scheduler == "rex" else 0.02
    if scheduler != "cosine_annealing_with_restarts":
        assert shares[-1] == pytest.approx(last, abs=0.09)


def loss_of(
    settings: TrainSettings,
    predict: float | None = None,
    shares: Shares | None = None,
    prediction: Prediction = Prediction.NOISE,
) -> float:
    """Of two latents whose answer is the truth's, or a constant."""
    latents = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(5))
    loss = NoiseLoss(settings, prediction, False, CPU)

    def answer(noisy: Tensor, times: Tensor) -> Tensor:
        alpha = loss._alphas[times][:, None, None, None]
        noise = (noisy - alpha.sqrt() * latents) / (1 - alpha).sqrt()
        if predict is not None:
            return torch.full_like(noisy, predict)
        if prediction is Prediction.VELOCITY:
            return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return noise

    generator = torch.Generator().manual_seed(3)
    return float(loss(latents, answer, shares or Shares(2, 1.0), generator))


def test_the_right_answer_costs_nothing_and_a_wrong_one_the_more_the_less_noise() -> None:
    plain = TrainSettings()
    assert loss_of(plain) == pytest.approx(0, abs=1e-4)
    assert loss_of(plain, prediction=Prediction.VELOCITY) == pytest.approx(0, abs=1e-4)
    assert loss_of(replace(plain, offset_noise=0.2)) == pytest.approx(0, abs=1e-4)
    wrong = loss_of(plain, predict=0.0)
    assert wrong > 0.5
    assert 0 < loss_of(replace(plain, min_snr_gamma=1e-3), predict=0.0) < wrong


def test_class_pictures_weigh_what_they_are_told_to() -> None:
    plain, half = TrainSettings(), Shares(1, 0.5)
    own = loss_of(plain, 0.0, Shares(1, 0.0))
    prior = loss_of(plain, 0.0, Shares(1, 1.0)) - own
    assert loss_of(plain, 0.0, half) == pytest.approx(own + prior / 2)
    together = replace(plain, split_loss=False)
    assert loss_of(together, 0.0, half) == pytest.approx((own + prior) / 2)
    scaled = replace(plain, prior_loss_scale=True, prior_loss_target=10)
    assert [prior_weight(scaled, epoch) for epoch in (0, 5, 20)] == pytest.approx(
        [0.75, 0.425, 0.1]
    )


def test_dream_lets_the_answers_own_error_pass() -> None:
    plain = TrainSettings()
    wrong = loss_of(plain, predict=0.0)
    assert loss_of(replace(plain, use_dream=True), predict=0.0) > wrong  # more is asked of it
    assert loss_of(replace(plain, use_dream=True)) == pytest.approx(0, abs=1e-4)


def test_a_long_loss_curve_is_thinned() -> None:
    curve = LossCurve()
    for step in range(1, 3001):
        curve.add(step, step / 10)
    assert 250 < len(curve.points) <= 500
    assert curve.points[-1][0] > 2990
    gaps = {b[0] - a[0] for a, b in zip(curve.points, curve.points[1:], strict=False)}
    assert gaps == {8}


def test_samplers_are_known_by_the_extensions_names_and_the_webuis() -> None:
    assert sampler_of("ddim") == "DDIM"
    assert sampler_of("EulerAncestralDiscreteScheduler") == "Euler a"
    assert sampler_of("DPM++ 2M") == "DPM++ 2M"
    assert sampler_of("magic") is None
