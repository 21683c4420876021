"""The recipes: their shortcuts are exact, and their end is a folder that diffusers loads."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file

from wan_tpu.demo import data, train, train_denoiser, train_vae
from wan_tpu.demo.muon import BatchedMuon
from wan_tpu.demo.phases import Phase, Run, run_phase
from wan_tpu.demo.recipes import RECIPES, Recipe
from wan_tpu.demo.tokenizer import LONGEST_PROMPT, TEXT_LENGTH, make_tokenizer


@pytest.fixture(scope="module", params=list(RECIPES))
def recipe(request) -> Recipe:
    return RECIPES[request.param]


@pytest.fixture(scope="module")
def vae(recipe) -> Any:
    return train_vae.make_vae(recipe.vae.config, seed=3).eval()


def clips(recipe: Recipe, batch: int, num_frames: int) -> torch.Tensor:
    return train_vae.random_batch(np.random.default_rng(0), batch, num_frames, recipe.vae.world)


@torch.no_grad()
def test_whole_clips_equal_the_chunked_autoencoder(recipe, vae):
    video = clips(recipe, batch=1, num_frames=9)
    latents = vae.encode(video).latent_dist
    with train_vae.whole_clips():
        mean = train_vae.encode_mean(vae, video)
        decoded = train_vae.decode(vae, mean).clamp(-1, 1)
    torch.testing.assert_close(mean, latents.mode(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded, vae.decode(latents.mode()).sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(latents.std, torch.full_like(mean, train_vae.LATENT_NOISE))


@torch.no_grad()
def test_single_frames_equal_the_three_dimensional_convolutions(recipe, vae):
    video = clips(recipe, batch=2, num_frames=1)
    with train_vae.single_frames():
        mean = train_vae.encode_mean(vae, video)
        decoded = train_vae.decode(vae, mean).clamp(-1, 1)
    torch.testing.assert_close(mean, vae.encode(video).latent_dist.mode(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded, vae.decode(mean).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_clips_first_latent_is_that_of_its_first_frame(recipe, vae):
    video = clips(recipe, batch=2, num_frames=9)
    with train_vae.whole_clips():
        mean = train_vae.encode_mean(vae, video)
    alone = vae.encode(video[:, :, :1]).latent_dist.mode()
    torch.testing.assert_close(mean[:, :, :1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_forgetting_the_past_makes_every_latent_stand_alone():
    # Of Wan 2.2's shortcuts the first latent's is another than the later ones', by design.
    recipe = RECIPES["wan-tiny"]
    fresh: Any = train_vae.make_vae(recipe.vae.config, seed=3)
    train_vae.forget_the_past(fresh)
    video = clips(recipe, batch=1, num_frames=9)
    latents = fresh.encode(video).latent_dist.mode()
    alone = fresh.encode(video[:, :, -1:]).latent_dist.mode()
    torch.testing.assert_close(latents[:, :, -1:], alone, rtol=1e-4, atol=1e-5)


def test_the_training_draws_what_the_judge_knows(recipe):
    rng, times = np.random.default_rng(0), np.array([[0.0, 0.3, 1.0]] * 3)
    scenes = [data.all_scenes()[index] for index in (0, 17, 211)]
    assert {scene.shape for scene in scenes} == set(data.SHAPES)
    poses = [data.random_pose(rng, recipe.world) for _ in scenes]
    video = train_vae.draw(scenes, poses, recipe.world, times, "cpu")
    for drawn, scene, pose in zip(video, scenes, poses, strict=True):
        frames = data.make_frames(scene, pose, recipe.world, times[0])
        actual = drawn.permute(1, 2, 3, 0).numpy() / 2 + 0.5
        np.testing.assert_allclose(actual, frames, atol=1e-5)


@torch.no_grad()
def test_eleven_text_positions_equal_five_hundred_and_twelve():
    text_encoder, transformer = train_denoiser.make_models(seed=0, channels=16)
    ids, mask = train_denoiser.tokenize(["a red circle moving left on a black background", ""])
    compact = train_denoiser.compact_text(text_encoder, ids, mask)
    assert compact.shape[1] == LONGEST_PROMPT + 1
    embeddings = text_encoder(ids, mask).last_hidden_state * mask[..., None]
    torch.testing.assert_close(compact[:, :-1], embeddings)
    full = torch.nn.functional.pad(compact, (0, 0, 0, TEXT_LENGTH - LONGEST_PROMPT - 1))
    latents = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([100.0, 900.0])
    expected = transformer(latents, timestep, full, return_dict=False)[0]
    processor: Any = train_denoiser.CompactAttention()
    transformer.set_attn_processor(processor)
    actual = transformer(latents, timestep, compact, return_dict=False)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


class Recorder:
    """A transformer that keeps what it is given and answers zero."""

    def __call__(self, latents, timestep, text, return_dict):
        self.latents, self.timestep = latents, timestep
        return (torch.zeros_like(latents),)


def test_a_given_frame_is_clean_has_timestep_0_and_is_not_judged():
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, 4, 3, 4, 6, generator=generator) for _ in range(2))
    sigma, given = torch.tensor([0.5, 0.25]), torch.tensor([1.0, 0.0])
    transformer = Recorder()
    loss = train_denoiser.flow_loss(transformer, torch.zeros(1), latents, noise, sigma, given)
    mixed = 0.5 * latents[0] + 0.5 * noise[0]
    torch.testing.assert_close(transformer.latents[0, :, 0], latents[0, :, 0])
    torch.testing.assert_close(transformer.latents[0, :, 1:], mixed[:, 1:])
    torch.testing.assert_close(transformer.latents[1], 0.75 * latents[1] + 0.25 * noise[1])
    # Three latent frames of 2 x 3 tokens, in diffusers' order.
    assert transformer.timestep.tolist() == [[0.0] * 6 + [500.0] * 12, [250.0] * 18]
    target = (noise - latents).square()
    frames = [target[0, :, 1:].flatten(), target[1].flatten()]
    torch.testing.assert_close(loss, torch.cat(frames).mean())


def test_never_given_is_as_without_timesteps_per_token():
    text_encoder, transformer = train_denoiser.make_models(seed=0, channels=4)
    ids, mask = train_denoiser.tokenize(["a red circle moving left on a black background"])
    text = train_denoiser.compact_text(text_encoder, ids, mask).expand(2, -1, -1)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, 4, 3, 4, 4, generator=generator) for _ in range(2))
    inputs = transformer, text, latents, noise, torch.tensor([0.9, 0.3])
    scalar = train_denoiser.flow_loss(*inputs)
    torch.testing.assert_close(train_denoiser.flow_loss(*inputs, torch.zeros(2)), scalar)


def test_batched_muon_is_torchs():
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (48, 16), (16, 48), (16, 16)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    start = [parameter.detach().clone() for parameter in ours]
    optimizers = (
        BatchedMuon(ours, lr=1e-2, weight_decay=0.01),
        torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            other.grad = own.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other, before in zip(ours, theirs, start, strict=True):
        assert (own - before).norm() > 0.05
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6)


def test_tokenizer_takes_any_text_and_ends_it():
    tokenizer = make_tokenizer()
    tokens = tokenizer(["", "a Red circle.", "日本 zebra"], padding="max_length", max_length=5)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    a, red, circle = (tokenizer.get_vocab()[word] for word in ("a", "red", "circle"))
    assert tokens.input_ids == [[1, 0, 0, 0, 0], [a, red, circle, 1, 0], [2, 2, 1, 0, 0]]


def test_a_resumed_phase_continues_as_if_never_stopped(tmp_path):
    def run(folder: str, stop: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)
        optimizer = torch.optim.AdamW(module.parameters(), 0.1)
        phase = Phase(name="p", steps=6, batch=4, learning_rate=0.1, warmup_steps=2)

        def draw(step: int) -> tuple[torch.Tensor]:
            if step == stop:
                raise KeyboardInterrupt
            return (torch.from_numpy(phase.rng(0, step).random((4, 3), dtype=np.float32)),)

        def loss_of(inputs: torch.Tensor) -> torch.Tensor:
            return module(inputs).square().mean()

        where = Run(work=tmp_path / folder, checkpoint_every=2, progress=False)
        run_phase(phase, where, {"module": module}, [optimizer], draw, loss_of)
        return module.weight.detach()

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop=3)
    torch.testing.assert_close(run("stopped", None), run("whole", None), rtol=0, atol=0)


def test_the_whole_recipe_ends_in_a_folder_that_diffusers_loads(recipe, tmp_path: Path):
    short = dataclasses.replace(
        recipe,
        vae=dataclasses.replace(
            recipe.vae,
            frames=Phase(name="vae-frames", steps=2, batch=2, learning_rate=1e-3),
            clips=Phase(name="vae-clips", steps=1, batch=1, learning_rate=1e-4),
            world=dataclasses.replace(recipe.vae.world, num_frames=5),
        ),
        denoiser=dataclasses.replace(
            recipe.denoiser,
            phase=Phase(name="denoiser", steps=2, batch=2, learning_rate=1e-3),
            num_clips=2,
        ),
        psnr_clips=0,
    )
    run = Run(work=tmp_path / "work", compile=False, progress=False)
    train.train_model(short, run, tmp_path / "model")
    pipeline: Any = WanPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.config.expand_timesteps == recipe.takes_pictures
    shipped = json.loads((recipe.path / "generation_defaults.json").read_text())
    defaults = json.loads((tmp_path / "model" / "generation_defaults.json").read_text())
    assert defaults == shipped
    video = pipeline(
        prompt="a red circle moving left on a black background",
        height=defaults["height"],
        width=defaults["width"],
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=defaults["guidance_scale"],
        output_type="np",
    ).frames
    assert video.shape == (1, 5, recipe.world.side, recipe.world.side, 3)
    assert np.isfinite(video).all()
    assert not list((tmp_path / "model").rglob("*.bin"))


def test_the_recipe_makes_a_model_of_the_shipped_form(recipe, vae):
    def form(path: str) -> dict[str, tuple[int, ...]]:
        weights = load_file(recipe.path / path / "diffusion_pytorch_model.safetensors")
        return {name: tuple(weight.shape) for name, weight in weights.items()}

    _, transformer = train_denoiser.make_models(0, recipe.vae.config["z_dim"])
    for path, module in (("vae", vae), ("transformer", transformer)):
        assert form(path) == {name: tuple(p.shape) for name, p in module.state_dict().items()}
