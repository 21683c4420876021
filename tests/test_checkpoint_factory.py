"""The random models are such that tests made with them can fail: every input matters."""

import functools

import pytest
import torch
from diffusers import DiffusionPipeline, WanImageToVideoPipeline

from tests.checkpoint_factory import IMAGE_TOKENS, PROMPT, RANDOM_KINDS, make_random_model

FRAMES, HEIGHT, WIDTH = 3, 4, 6
"""Of the latents."""

LEAST_CHANGE = 1e-2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Diffusers' pipeline of a kind's folder, by the kind's name."""

    @functools.cache
    def load(kind):
        return DiffusionPipeline.from_pretrained(
            make_random_model(tmp_path_factory.mktemp("model") / kind, kind)
        )

    return load


every_kind = pytest.mark.parametrize("kind", RANDOM_KINDS)


def experts_of(pipeline):
    found = (pipeline.transformer, pipeline.transformer_2)
    return [each for each in found if each is not None]


def embed(pipeline, prompt):
    """As the pipelines do it: 512 tokens, of which those after the prompt's are zero."""
    return pipeline.encode_prompt(
        prompt, do_classifier_free_guidance=False, max_sequence_length=512
    )[0]


def transformer_inputs(transformer, pipeline):
    """Random latents, a prompt's embeddings, and as many image tokens as the model takes."""
    config = transformer.config
    torch.manual_seed(1)
    text = embed(pipeline, PROMPT)
    image = None
    if config.image_dim is not None:
        tokens = config.pos_embed_seq_len or IMAGE_TOKENS
        # Two pictures of a first-and-last-frame model come as a batch.
        pictures = (2, tokens // 2) if config.pos_embed_seq_len else (1, tokens)
        image = torch.randn(*pictures, config.image_dim)
    return {
        "hidden_states": torch.randn(1, config.in_channels, FRAMES, HEIGHT, WIDTH),
        "timestep": torch.tensor([700]),
        "encoder_hidden_states": text,
        "encoder_hidden_states_image": image,
    }


def changes(call, inputs, name, dim, number=None):
    """How much the result changes at most, for each (or the first) index of a dimension."""
    before, found = call(inputs), []
    for index in range(number or inputs[name].shape[dim]):
        perturbed = inputs[name].clone()
        perturbed.select(dim, index).add_(torch.randn_like(perturbed.select(dim, index)))
        after = call({**inputs, name: perturbed})
        found.append((after - before).abs().max().item())
    return found


@every_kind
@torch.no_grad()
def test_the_transformers_react_to_each_input(models, kind):
    """Red when a channel, an image token or a word of the prompt is lost in the noise."""
    pipeline = models(kind)
    words = len(pipeline.tokenizer(PROMPT).input_ids)
    for transformer in experts_of(pipeline):
        inputs = transformer_inputs(transformer, pipeline)

        def call(values, transformer=transformer):
            return transformer(**values).sample

        assert min(changes(call, inputs, "hidden_states", 1)) > LEAST_CHANGE
        later = {**inputs, "timestep": torch.tensor([710])}
        assert (call(later) - call(inputs)).abs().max() > LEAST_CHANGE
        if inputs["encoder_hidden_states_image"] is not None:
            assert min(changes(call, inputs, "encoder_hidden_states_image", 1)) > LEAST_CHANGE
        assert not inputs["encoder_hidden_states"][:, words:].any()
        assert min(changes(call, inputs, "encoder_hidden_states", 1, words)) > LEAST_CHANGE


@every_kind
@torch.no_grad()
def test_the_experts_are_different(models, kind):
    pipeline = models(kind)
    assert type(pipeline) is RANDOM_KINDS[kind].pipeline
    experts = experts_of(pipeline)
    assert len(experts) == (2 if RANDOM_KINDS[kind].has_two_experts else 1)
    outputs = [each(**transformer_inputs(each, pipeline)).sample for each in experts]
    assert all((output - outputs[0]).abs().max() > 0.1 for output in outputs[1:])


@every_kind
@torch.no_grad()
def test_the_prompt_matters(models, kind):
    pipeline = models(kind)
    first, second = (embed(pipeline, text) for text in (PROMPT, PROMPT.replace("red", "blue")))
    assert (first - second).abs().max() > 0.1


@every_kind
@torch.no_grad()
def test_the_autoencoder_reacts_to_each_pixel_of_a_patch_and_each_channel(models, kind):
    """Red when a chunk, a channel or a pixel's place within the patch could be swapped unseen."""
    vae = models(kind).vae
    torch.manual_seed(1)
    size = 2 * vae.config.scale_factor_spatial
    pixels = {"x": torch.rand(1, 3, 5, size, size) * 2 - 1}

    def encode(values):
        return vae.encode(values["x"]).latent_dist.mean

    for dim in (1, 2, 3, 4):
        assert min(changes(encode, pixels, "x", dim)) > LEAST_CHANGE
    mean = encode(pixels)
    # The random decoder must not only meet the clamp at its end.
    assert vae.decode(mean).sample.abs().lt(1).float().mean() > 0.5
    latents = {"z": mean}
    found = changes(lambda values: vae.decode(values["z"]).sample, latents, "z", 1)
    assert min(found) > LEAST_CHANGE


@pytest.mark.parametrize("kind", ["i2v", "flf2v"])
@torch.no_grad()
def test_the_image_encoder_reacts_to_each_patch(models, kind):
    """By its last layer but one, without the norm after the last, which changes every number."""
    encoder = models(kind).image_encoder
    torch.manual_seed(1)
    patch = encoder.config.patch_size
    pixels = torch.randn(1, 3, 224, 224)
    before = encoder(pixels, output_hidden_states=True)
    assert before.hidden_states[-2].shape == (1, IMAGE_TOKENS, encoder.config.hidden_size)
    for row in range(0, 224, patch):
        for column in range(0, 224, patch):
            changed = pixels.clone()
            changed[:, :, row : row + patch, column : column + patch] += 1
            after = encoder(changed, output_hidden_states=True).hidden_states[-2]
            assert (after - before.hidden_states[-2]).abs().max() > LEAST_CHANGE
    norm = encoder.vision_model.post_layernorm
    assert (norm(before.hidden_states[-2]) - before.hidden_states[-2]).abs().max() > 0.1
    assert (before.hidden_states[-1] - before.hidden_states[-2]).abs().max() > 0.1


def test_a_text_and_image_model_loads_as_an_image_to_video_model(tmp_path):
    """As diffusers has it: its folder says WanPipeline, and pictures go through the other class."""
    found = WanImageToVideoPipeline.from_pretrained(make_random_model(tmp_path / "ti2v", "ti2v"))
    assert found.config["expand_timesteps"]
    assert found.image_encoder is None
