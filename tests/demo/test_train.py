"""The recipe: its shortcuts are exact, and its end is a folder that diffusers loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from wan_tpu.demo import train, train_denoiser, train_vae
from wan_tpu.demo.phases import Phase, Run, run_phase
from wan_tpu.demo.tokenizer import LONGEST_PROMPT, TEXT_LENGTH, make_tokenizer


@pytest.fixture(scope="module")
def vae() -> Any:
    return train_vae.make_vae(seed=3).eval()


@torch.no_grad()
def test_whole_clips_equal_the_chunked_autoencoder(vae):
    video = train_vae.random_batch(np.random.default_rng(0), batch=1, num_frames=9)
    latents = vae.encode(video).latent_dist
    with train_vae.whole_clips():
        mean = vae.quant_conv(vae.encoder(video))[:, :16]
        decoded = vae.decoder(vae.post_quant_conv(mean)).clamp(-1, 1)
    torch.testing.assert_close(mean, latents.mode(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoded, vae.decode(latents.mode()).sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(latents.std, torch.full_like(mean, train_vae.LATENT_NOISE))


@torch.no_grad()
def test_single_frames_equal_the_three_dimensional_convolutions(vae):
    video = train_vae.random_batch(np.random.default_rng(0), batch=2, num_frames=1)
    with train_vae.single_frames():
        mean = vae.quant_conv(vae.encoder(video))[:, :16]
    torch.testing.assert_close(mean, vae.encode(video).latent_dist.mode(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_forgetting_the_past_makes_every_frame_stand_alone(vae):
    fresh: Any = train_vae.make_vae(seed=3)
    train_vae.forget_the_past(fresh)
    video = train_vae.random_batch(np.random.default_rng(0), batch=1, num_frames=9)
    latents = fresh.encode(video).latent_dist.mode()
    alone = fresh.encode(video[:, :, -1:]).latent_dist.mode()
    torch.testing.assert_close(latents[:, :, -1:], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_eleven_text_positions_equal_five_hundred_and_twelve():
    text_encoder, transformer = train_denoiser.make_models(seed=0)
    ids, mask = train_denoiser.tokenize(["a red circle moving left on a black background", ""])
    compact = train_denoiser.compact_text(text_encoder, ids, mask)
    assert compact.shape[1] == LONGEST_PROMPT + 1
    full = torch.nn.functional.pad(compact, (0, 0, 0, TEXT_LENGTH - LONGEST_PROMPT - 1))
    latents = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([100.0, 900.0])
    expected = transformer(latents, timestep, full, return_dict=False)[0]
    processor: Any = train_denoiser.CompactAttention()
    transformer.set_attn_processor(processor)
    actual = transformer(latents, timestep, compact, return_dict=False)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


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

        def loss_of_step(step: int) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            rng = phase.rng(0, step)
            return module(torch.from_numpy(rng.random((4, 3), dtype=np.float32))).square().mean()

        where = Run(work=tmp_path / folder, checkpoint_every=2, progress=False)
        run_phase(phase, where, {"module": module}, [optimizer], loss_of_step)
        return module.weight.detach()

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop=3)
    torch.testing.assert_close(run("stopped", None), run("whole", None), rtol=0, atol=0)


def test_the_whole_recipe_ends_in_a_folder_that_diffusers_loads(tmp_path: Path):
    recipe = train.Recipe(
        vae=train_vae.VaeRecipe(
            frames=Phase(name="vae-frames", steps=2, batch=2, learning_rate=1e-3),
            clips=Phase(name="vae-clips", steps=1, batch=1, learning_rate=1e-4),
            clip_frames=5,
        ),
        denoiser=train_denoiser.DenoiserRecipe(
            phase=Phase(name="denoiser", steps=2, batch=2, learning_rate=1e-3), num_clips=2
        ),
        psnr_clips=0,
    )
    run = Run(work=tmp_path / "work", compile=False, progress=False)
    train.train_wan_tiny(recipe, run, tmp_path / "model")
    pipeline: Any = WanPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    defaults = json.loads((tmp_path / "model" / "generation_defaults.json").read_text())
    video = pipeline(
        prompt="a red circle moving left on a black background",
        height=defaults["height"],
        width=defaults["width"],
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=defaults["guidance_scale"],
        output_type="np",
    ).frames
    assert video.shape == (1, 5, 64, 64, 3)
    assert np.isfinite(video).all()
    assert not list((tmp_path / "model").rglob("*.bin"))
