"""The noise process against the formulas, and the randomness of a training step."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamvideo.bases.base import VideoBase
from dreamvideo.diffusion import Draw, EpsPrediction, Process, VPrediction, generator, offset_noise, process_of
from dreamvideo.errors import Unsupported

# ModelScopeT2V: betas are (linspace(sqrt(0.00085), sqrt(0.0120), 1000))^2.
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2)


@pytest.fixture(params=[EpsPrediction, VPrediction])
def process(request: pytest.FixtureRequest) -> Process:
    return request.param(torch.from_numpy(ABAR))


def randn(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=generator(name))


def a_draw(*names: int | str) -> Draw:
    return Draw(EpsPrediction(torch.from_numpy(ABAR)), generator(*names))


# -- the process ------------------------------------------------------------------------------------------------------


def test_schedule_of_the_paper(unet3d: VideoBase) -> None:
    process = unet3d.process
    assert isinstance(process, EpsPrediction)
    assert process.steps == 1000
    assert process.abar.dtype == torch.float64
    # diffusers multiplies in float32.
    np.testing.assert_allclose(process.abar.numpy(), ABAR, rtol=2e-5)


def test_noisy_is_equation_4_of_ddpm(process: Process) -> None:
    x0, noise = randn(3, 4, 2, 5, 5, name="x0"), randn(3, 4, 2, 5, 5, name="noise")
    t = torch.tensor([0, 400, 999])
    by_hand = [ABAR[s] ** 0.5 * x0[i] + (1 - ABAR[s]) ** 0.5 * noise[i] for i, s in enumerate(t.tolist())]
    torch.testing.assert_close(process.noisy(x0, noise, t), torch.stack(by_hand))


def test_target_is_the_noise_or_v() -> None:
    x0, noise, t = randn(2, 4, 1, 3, 3, name="x0"), randn(2, 4, 1, 3, 3, name="noise"), torch.tensor([10, 700])
    abar = torch.from_numpy(ABAR)
    assert torch.equal(EpsPrediction(abar).target(x0, noise, t), noise)
    v = [ABAR[s] ** 0.5 * noise[i] - (1 - ABAR[s]) ** 0.5 * x0[i] for i, s in enumerate(t.tolist())]
    torch.testing.assert_close(VPrediction(abar).target(x0, noise, t), torch.stack(v))


@pytest.mark.parametrize("step", [0, 321, 999])
def test_a_perfect_prediction_gives_back_what_made_it(process: Process, step: int) -> None:
    # In float64: at the last step the signal is a fifteenth of the noise.
    x0, noise = randn(1, 4, 2, 3, 3, name="x0").double(), randn(1, 4, 2, 3, 3, name="noise").double()
    t = torch.tensor([step])
    x_t = process.noisy(x0, noise, t)
    prediction = process.target(x0, noise, t)
    torch.testing.assert_close(process.clean(prediction, x_t, t), x0)
    torch.testing.assert_close(process.noise(prediction, x_t, t), noise)


def test_process_of_a_scheduler_config() -> None:
    abar = torch.from_numpy(ABAR)
    assert type(process_of({"prediction_type": "epsilon"}, abar)) is EpsPrediction
    assert type(process_of({"prediction_type": "v_prediction"}, abar)) is VPrediction
    with pytest.raises(Unsupported, match="'sample': known are epsilon, v_prediction"):
        process_of({"prediction_type": "sample"}, abar)


# -- generators -------------------------------------------------------------------------------------------------------


def test_a_stream_is_named_by_its_seeds() -> None:
    names: list[tuple[int | str, ...]] = [
        (0,),
        (1,),
        (0, 0),
        (0, 1),
        (1, 0),
        ("a",),
        (0, "a"),
        ("a", 0),
        (0, "order", 1),
    ]
    first = [torch.rand(4, generator=generator(*name)) for name in names]
    again = [torch.rand(4, generator=generator(*name)) for name in names]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({tuple(stream.tolist()) for stream in first}) == len(names)


def test_neighbouring_streams_are_unrelated() -> None:
    streams = torch.stack([torch.randn(500, generator=generator(0, "word", step)) for step in range(40)])
    related = torch.corrcoef(streams) - torch.eye(40)
    assert related.abs().max() < 0.25  # 5.5 standard deviations


def test_global_randomness_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    draw = a_draw("global")
    draw.noised(torch.zeros(2, 4, 1, 2, 2), offset=0.1)
    draw.swap(torch.zeros(2, 3, 4), torch.ones(1, 3, 4), 0.5)
    draw.pick(torch.zeros(2, 3, 4))
    draw.posterior(torch.zeros(2), torch.ones(2))
    assert torch.equal(torch.get_rng_state(), before)


# -- offset noise -----------------------------------------------------------------------------------------------------


def test_offset_noise_shifts_every_channel_of_every_frame_by_itself() -> None:
    strength, shape = 0.7, (40, 4, 10, 8, 8)
    noise = offset_noise(shape, strength, generator("offset"))
    means = noise.mean(dim=(3, 4))
    assert means.var().item() == pytest.approx(strength**2 + 1 / 64, rel=0.1)
    assert abs(means.mean().item()) < 0.06
    # Neither frames nor channels nor samples share their shift.
    for dim in (0, 1, 2):
        first, second = means.select(dim, 0).flatten(), means.select(dim, 1).flatten()
        assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.45
    within = noise - means[..., None, None]
    assert within.var().item() == pytest.approx(1 - 1 / 64, rel=0.02)


def test_without_offset_the_noise_is_plain() -> None:
    plain = torch.randn(2, 4, 3, 5, 5, generator=generator("plain"))
    assert torch.equal(offset_noise((2, 4, 3, 5, 5), 0.0, generator("plain")), plain)


# -- one step's draws -------------------------------------------------------------------------------------------------


def everything(draw: Draw) -> list[Tensor]:
    values = torch.arange(24.0).view(2, 3, 4)
    return [
        *draw.noised(torch.ones(2, 4, 1, 2, 2), offset=0.1),
        draw.posterior(torch.zeros(2, 3), torch.ones(2, 3)),
        draw.pick(values),
        draw.drop(values, 0.5),
        torch.tensor([draw.index(1000), draw.seed()]),
    ]


def test_the_same_name_draws_the_same() -> None:
    first, again, other = (everything(a_draw(0, "word", step)) for step in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_noised_hands_out_what_it_used() -> None:
    draw = a_draw("noised")
    x0 = randn(3, 4, 2, 5, 5, name="x0")
    x_t, t, target = draw.noised(x0, offset=0.1)
    torch.testing.assert_close(draw.process.noisy(x0, target, t), x_t)
    assert t.shape == (3,)


def test_the_offset_is_in_the_noise_and_so_in_the_target() -> None:
    _, _, target = a_draw("offset target").noised(torch.zeros(20, 4, 5, 8, 8), offset=1.0)
    assert target.mean(dim=(3, 4)).var().item() == pytest.approx(1 + 1 / 64, rel=0.25)


def test_timesteps_cover_the_whole_range_evenly() -> None:
    _, t, _ = a_draw("uniform").noised(torch.zeros(20_000, 1, 1, 1, 1))
    assert (t.min().item(), t.max().item()) == (0, 999)
    counts = torch.bincount(t // 100, minlength=10)
    assert (counts - 2000).abs().max() < 250  # 6 standard deviations


def test_posterior_has_its_mean_and_deviation() -> None:
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    drawn = a_draw("posterior").posterior(mean.expand(20_000, 2), std.expand(20_000, 2))
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.std(0), std, atol=0, rtol=0.03)


def test_pick_takes_a_row_of_the_same_sample() -> None:
    values = torch.arange(6).view(2, 3, 1) * torch.ones(1, 1, 4)
    seen: list[set[float]] = [set(), set()]
    draw = a_draw("pick")
    for _ in range(60):
        picked = draw.pick(values)
        assert picked.shape == (2, 1, 4)
        for sample in range(2):
            seen[sample].add(picked[sample, 0, 0].item())
    assert seen == [{0.0, 1.0, 2.0}, {3.0, 4.0, 5.0}]


def test_pick_draws_for_each_sample_by_itself() -> None:
    picked = a_draw("pick").pick(torch.arange(3.0).view(1, 3, 1).expand(50, 3, 1))
    assert set(picked.unique().tolist()) == {0.0, 1.0, 2.0}


def test_index_covers_its_range() -> None:
    draw = a_draw("index")
    assert {draw.index(5) for _ in range(100)} == set(range(5))
    assert {draw.index(1) for _ in range(5)} == {0}


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_swap_replaces_whole_samples_at_its_rate(p: float) -> None:
    values, other = torch.ones(5000, 3, 2), torch.full((1, 3, 2), 7.0)
    swapped = a_draw("swap").swap(values, other, p)
    per_sample = swapped.flatten(1)
    assert ((per_sample == 1).all(1) | (per_sample == 7).all(1)).all()
    rate = (per_sample[:, 0] == 7).float().mean().item()
    assert rate == p if p in (0.0, 1.0) else abs(rate - p) < 0.04  # 6 standard deviations


def test_drop_swaps_in_zeros() -> None:
    values = torch.ones(1000, 1, 4)
    dropped = a_draw("drop").drop(values, 0.5)
    assert torch.equal(dropped, a_draw("drop").swap(values, torch.zeros(1, 1, 4), 0.5))
    assert set(dropped.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("make", [Draw.seed, lambda draw: draw.index(2**62)])
def test_seeds_are_spread_over_many_bits(make: Callable[[Draw], int]) -> None:
    draw = a_draw("seed")
    assert len({make(draw) for _ in range(50)}) == 50
