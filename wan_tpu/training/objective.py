"""Flow matching: the noise levels of a step, what the model sees there and what it should say.

With latents x, noise e and a noise level s between 0 (none) and 1 (noise alone) the model sees
`(1 - s) x + s e` at the timestep `1000 s` and is to predict the velocity `e - x` (Lipman et al.
2022, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206). Everything random is drawn from the
seed, the step and the sample's place in the batch: there is no state to keep, and neither layout
nor parts of a batch change it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Bool, Float32, Int32, PRNGKeyArray

from wan_tpu.training.config import FlowConfig

NUM_TIMESTEPS = 1000
"""What a noise level is multiplied by for the model."""

TOP_QUANTILE = 1 - 1e-6
"""Of logit-normal draws: the normal distribution has no largest value."""


class SigmaRange(NamedTuple):
    """The noise levels that a step may draw.

    Attributes:
        low: the least.
        high: the greatest.
    """

    low: Float32[Array, ""]
    high: Float32[Array, ""]


class Draws(NamedTuple):
    """What is random in a batch.

    Attributes:
        sigma: noise level of each sample.
        noise: of each sample's real tokens.
        without_caption: which samples' captions are left out.
        with_picture: which samples' first latent frames are given.
    """

    sigma: Float32[Array, " batch"]
    noise: Float32[Array, "batch tokens channels"]
    without_caption: Bool[Array, " batch"]
    with_picture: Bool[Array, " batch"]


def step_key(seed: int, step: Int32[Array, ""]) -> PRNGKeyArray:
    """What everything random in a step is drawn from."""
    return jax.random.fold_in(jax.random.key(seed), step)


def draw(
    key: PRNGKeyArray,
    places: Int32[Array, " batch"],
    batch: int,
    shape: tuple[int, int],
    flow: FlowConfig,
    sigmas: SigmaRange,
    *,
    caption_dropout: float,
    image_probability: float,
) -> Draws:
    """What is random for some samples of a step's batch.

    Args:
        key: of the step.
        places: of the samples, in the whole batch.
        batch: samples of the whole batch.
        shape: real tokens and their channels.
        flow: how noise levels are drawn.
        sigmas: their range.
        caption_dropout: share of the samples without a caption.
        image_probability: share of the samples whose first latent frame is given.
    """

    def of_sample(place: Int32[Array, ""]) -> Draws:
        keys = jax.random.split(jax.random.fold_in(key, place), 4)
        # The batch's noise levels are spread evenly: one in each of as many parts.
        quantile = (place + jax.random.uniform(keys[0])) / batch
        return Draws(
            sigma=sigma_at(quantile, flow, sigmas),
            noise=jax.random.normal(keys[1], shape),
            without_caption=jax.random.bernoulli(keys[2], caption_dropout),
            with_picture=jax.random.bernoulli(keys[3], image_probability),
        )

    return jax.vmap(of_sample)(places)


def shifted(u: Float32[Array, "*n"] | float, shift: float) -> Float32[Array, "*n"]:
    """The noise level of u: `shift u / (1 + (shift - 1) u)`."""
    return jnp.asarray(shift * u / (1 + (shift - 1) * u))


def unshifted(sigma: Float32[Array, "*n"], shift: float) -> Float32[Array, "*n"]:
    """`shifted` undone."""
    return sigma / (shift - (shift - 1) * sigma)


def sigma_at(
    quantile: Float32[Array, "*n"], flow: FlowConfig, sigmas: SigmaRange
) -> Float32[Array, "*n"]:
    """The noise level below which this share of the draws within a range lies.

    The distribution is cut off at the range's ends and what is left is stretched over the
    quantiles: nothing is clamped, so no level is drawn more often than the others beside it.

    Args:
        quantile: between 0 and 1.
        flow: the distribution.
        sigmas: the range, beside the distribution's own.
    """
    low, high = (share_below(sigma, flow) for sigma in sigmas)
    share = low + (high - low) * quantile
    if flow.sampling == "uniform":
        u = share
    else:
        normal = ndtri(jnp.clip(share, 1 - TOP_QUANTILE, TOP_QUANTILE))
        u = jax.nn.sigmoid(flow.logit_mean + flow.logit_std * normal)
    # Rounding must not leave the range: an expert is never shown the other's levels.
    return jnp.clip(shifted(u, flow.shift), sigmas.low, sigmas.high)


def share_below(sigma: Float32[Array, "*n"], flow: FlowConfig) -> Float32[Array, "*n"]:
    """The share of all draws, without a range, that lie below a noise level."""
    u = unshifted(sigma, flow.shift)
    if flow.sampling == "uniform":
        return u
    inside = jnp.clip(u, 1e-30, 1 - 1e-7)
    logit = jnp.log(inside) - jnp.log1p(-inside)
    return ndtr((logit - flow.logit_mean) / flow.logit_std)


def weight_of(sigma: Float32[Array, "*n"], flow: FlowConfig) -> Float32[Array, "*n"]:
    """What a sample's loss is multiplied by: a function of its noise level and of nothing else."""
    if flow.weighting == "linear":
        return 1 + flow.shift * sigma
    if flow.weighting == "bell":
        # exp(-2 (s - 1/2)^2) less its value at the ends, over its mean.
        ends = math.exp(-0.5)
        mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - ends
        return (jnp.exp(-2 * (sigma - 0.5) ** 2) - ends) / mean
    return jnp.ones_like(sigma)


def noised(
    latents: Float32[Array, "batch tokens channels"],
    noise: Float32[Array, "batch tokens channels"],
    sigma: Float32[Array, " batch"],
) -> Float32[Array, "batch tokens channels"]:
    """What the model sees of the samples."""
    level = sigma[:, None, None]
    return (1 - level) * latents + level * noise


def flow_losses(
    predicted: Float32[Array, "batch tokens channels"],
    latents: Float32[Array, "batch tokens channels"],
    noise: Float32[Array, "batch tokens channels"],
    counted: Bool[Array, "batch tokens"],
) -> Float32[Array, " batch"]:
    """Mean square of what is wrong with each sample's velocity, over the tokens that count.

    Args:
        predicted: velocities.
        latents: of the samples.
        noise: that was mixed in.
        counted: not padding, and not given to the model as they are.
    """
    squares = jnp.square(predicted - (noise - latents)).mean(axis=-1)  # [batch, tokens]
    total = jnp.where(counted, squares, 0).sum(axis=1)
    return total / counted.sum(axis=1)
