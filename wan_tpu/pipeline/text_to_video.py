"""From a request to a video, top to bottom: the one place that knows the order of the stages."""

import dataclasses
import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import NamedSharding

from wan_tpu.checkpoints.models import open_model
from wan_tpu.checkpoints.weights import Weight, load_weights
from wan_tpu.errors import BadNumbersError
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.denoise import denoise
from wan_tpu.pipeline.model import VideoModel, make_video_model
from wan_tpu.pipeline.progress import Progress, Watch
from wan_tpu.request import VideoRequest, VideoResult
from wan_tpu.schedulers.api import make_schedule
from wan_tpu.schedulers.base import Schedule
from wan_tpu.sharding.layout import Layout, default_layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.stage import Stage
from wan_tpu.text.prompt import check_prompt, tokenize
from wan_tpu.text.tokenizer import Tokenizer, load_tokenizer
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.denoiser import patchify
from wan_tpu.vae.backends import VaeBackend, load_vae

logger = logging.getLogger(__name__)

PACKAGES = ("wan_tpu", "torch", "torchax", "jax", "jaxlib", "flax", "diffusers", "transformers")


class TextToVideo:
    """A loaded model that makes videos; one generation at a time.

    Attributes:
        model: what runs: components, mesh, layout, attention.
    """

    def __init__(
        self,
        model: VideoModel,
        *,
        tokenizer: Tokenizer,
        text_params: dict[str, jax.Array],
        denoiser_params: dict[str, jax.Array],
        vae: VaeBackend,
    ):
        self.model = model
        self._tokenizer = tokenizer
        self._text_params = text_params
        self._denoiser_params = denoiser_params
        self._vae = vae
        self._programs: dict[Any, Callable[..., Any]] = {}

    @classmethod
    def from_pretrained(
        cls,
        name: str = "wan-tiny",
        *,
        layout: Layout | None = None,
        devices: Sequence[Any] | None = None,
        dtype: Any = None,
        attention: str = "auto",
        vae: str = "flax",
    ) -> "TextToVideo":
        """Loads a model onto devices.

        Args:
            name: `wan-tiny`, a folder in diffusers format, a hub id or a known model's name.
            layout: how it is split; chosen for the number of devices when not given.
            devices: those to use; all of all processes when not given.
            dtype: of weights and activations; bfloat16, on a CPU float32, when not given.
            attention: one of `wan_tpu.attention.api.IMPLEMENTATIONS`.
            vae: `flax`, or `maxdiffusion` where that package is installed.

        Raises:
            InputError: a name or layout that does not exist or does not fit.
            CheckpointError: files are missing, damaged or not those of the model.
            MissingPackageError: the VAE's package is not installed.
        """
        devices = list(devices if devices is not None else jax.devices())
        if layout is not None:
            layout.require_devices(len(devices))  # before gigabytes are downloaded
        description = open_model(name)
        dtype = jnp.dtype(dtype or ("float32" if devices[0].platform == "cpu" else "bfloat16"))
        if layout is None:
            transformer = TransformerConfig.from_json(description.configs["transformer"])
            layout = default_layout(len(devices), transformer.num_attention_heads)
        mesh = make_mesh(layout, devices)
        model = make_video_model(description, mesh, layout, dtype=dtype, attention=attention)
        backend = load_vae(vae, model.vae, description.source("vae"), mesh=mesh, dtype=dtype)
        logger.info(
            "%s: layout %s (%s, weights %s), attention %s, VAE %s, %s, %d x %s",
            name,
            layout,
            layout.sequence_parallel,
            layout.weights,
            model.denoiser.setting.implementation,
            backend.name,
            dtype,
            len(devices),
            devices[0].device_kind,
        )
        return cls(
            model,
            tokenizer=load_tokenizer(
                description.component_folder("tokenizer"), model.text_encoder.config.vocab_size
            ),
            text_params=load_weights(
                "text encoder",
                model.text_encoder.weights(),
                description.source("text_encoder"),
                mesh,
            ),
            denoiser_params=load_weights(
                "transformer",
                model.denoiser.weights(),
                description.source("transformer"),
                mesh,
            ),
            vae=backend,
        )

    def __call__(
        self,
        request: VideoRequest,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
        on_frames: Callable[[np.ndarray], None] | None = None,
    ) -> VideoResult:
        """Makes one video.

        Args:
            request: what to make; open fields take the model's defaults.
            on_progress: called at every step, with what is done so far.
            should_cancel: asked between steps; true ends the generation.
            on_frames: called with frames `[n, height, width, 3]`, uint8, as soon as they are
                decoded, in order, while later ones still decode.

        Raises:
            InputError: the request cannot be carried out; nothing was compiled.
            Cancelled: `should_cancel` said so.
            BadNumbersError: the model gave NaN or infinite numbers; in all processes alike.
        """
        check_prompt(request.prompt)
        request, geometry = check_request(self.model.description, request)
        watch = Watch(on_progress, should_cancel)
        context = self._encode_text(request, watch)
        latents = self._denoise(request, geometry, context, self._noise(request, geometry), watch)
        chunks = []
        for frames in self._decode(latents, geometry, watch):
            chunks.append(frames)
            if on_frames is not None:
                on_frames(frames)
        return VideoResult(
            frames=np.concatenate(chunks), metadata=self._metadata(request, geometry, watch)
        )

    def intermediate(self, request: VideoRequest) -> dict[str, np.ndarray]:
        """What each part makes of a request, for comparing layouts.

        Returns:
            velocity: of the transformer alone at the first step, `[batch, latent frames, latent
            height, latent width, channels]`; latents: after the whole run, `[1, ...]`; frames:
            as `VideoResult.frames`.
        """
        request, geometry = check_request(self.model.description, request)
        watch = Watch()
        context = self._encode_text(request, watch)
        noise = self._noise(request, geometry)
        stage = self.model.velocity_stage(geometry, _batch(request))
        timestep = np.asarray(self._schedule(request).timesteps[0], np.float32)
        velocity = self._program(stage, watch)(
            _subset(self._denoiser_params, self.model.denoiser.step_weights()),
            context,
            noise,
            place(timestep, named(self.model.mesh)),
        )
        latents = self._denoise(request, geometry, context, noise, watch)
        frames = np.concatenate(list(self._decode(latents, geometry, watch)))
        return {
            "velocity": np.asarray(velocity),
            "latents": np.asarray(latents),
            "frames": frames,
        }

    def warm_up(
        self, request: VideoRequest, *, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        """Compiles every program that a request like this one runs."""
        request, geometry = check_request(self.model.description, request)
        schedule = self._schedule(request)
        watch = Watch(on_progress)
        batch = _batch(request)
        stages = [
            self.model.text_stage(batch),
            self.model.text_check_stage(batch),
            self.model.context_stage(batch, batch),
            self.model.start_stage(geometry, schedule),
            self.model.step_stage(geometry, schedule, batch),
            self.model.latents_check_stage(geometry),
            self.model.latents_stage(geometry),
            *self._vae.stages(geometry.latent_height, geometry.latent_width),
        ]
        for stage in stages:
            self._program(stage, watch)

    def _schedule(self, request: VideoRequest) -> Schedule:
        assert request.num_inference_steps is not None
        assert request.flow_shift is not None
        assert request.scheduler is not None
        return make_schedule(
            request.scheduler,
            num_inference_steps=request.num_inference_steps,
            flow_shift=request.flow_shift,
            config=self.model.description.configs["scheduler"],
        )

    def _encode_text(self, request: VideoRequest, watch: Watch) -> Any:
        """Cross-attention's keys and values for the prompt and, with guidance, the negative one."""
        batch = _batch(request)
        prompts = [request.prompt, request.negative_prompt or ""][:batch]
        ids, mask = tokenize(self._tokenizer, prompts)
        if batch == 2 and np.array_equal(ids[0], ids[1]):
            ids, mask = ids[:1], mask[:1]  # equal prompts are encoded once
        text_stage = self.model.text_stage(len(ids))
        encode = self._program(text_stage, watch)
        is_finite = self._program(self.model.text_check_stage(len(ids)), watch)
        contextualise = self._program(self.model.context_stage(len(ids), batch), watch)
        with watch.stage("text", len(ids)) as report:
            tokens = [
                place(x, argument.sharding)
                for x, argument in zip((ids, mask), text_stage.arguments[1:], strict=True)
            ]
            embeddings = encode(self._text_params, *tokens)
            if not np.asarray(is_finite(embeddings)):
                raise BadNumbersError("text, the prompt's embeddings")
            weights = _subset(self._denoiser_params, self.model.denoiser.context_weights())
            context = jax.block_until_ready(contextualise(weights, embeddings))
            report(len(ids))
        return context

    def _denoise(
        self,
        request: VideoRequest,
        geometry: Geometry,
        context: Any,
        noise: jax.Array,
        watch: Watch,
    ) -> jax.Array:
        """Latents `[1, frames, height, width, channels]` of noise in token form."""
        assert request.guidance_scale is not None
        schedule, batch = self._schedule(request), _batch(request)
        start = self._program(self.model.start_stage(geometry, schedule), watch)
        step = self._program(self.model.step_stage(geometry, schedule, batch), watch)
        is_finite = self._program(self.model.latents_check_stage(geometry), watch)
        state = denoise(
            step,
            _subset(self._denoiser_params, self.model.denoiser.step_weights()),
            context,
            start(noise),
            schedule,
            is_finite=is_finite,
            guidance_scale=request.guidance_scale,
            mesh=self.model.mesh,
            watch=watch,
        )
        return self._program(self.model.latents_stage(geometry), watch)(state.sample)

    def _noise(self, request: VideoRequest, geometry: Geometry) -> jax.Array:
        """The noise of the request's seed, in token form on the mesh; padding tokens are zero."""
        noise = make_noise(request.seed, geometry, self.model.vae.z_dim)
        tokens = patchify(noise, geometry.compression.patch)  # [1, tokens, token channels]
        target = self.model.abstract_tokens(geometry)
        padding = target.shape[1] - tokens.shape[1]
        return place(np.pad(tokens, ((0, 0), (0, padding), (0, 0))), target.sharding)

    def _decode(self, latents: jax.Array, geometry: Geometry, watch: Watch) -> Iterator[np.ndarray]:
        """Frames in order, uint8 `[n, height, width, 3]`, while later ones decode."""
        stages = self._vae.stages(geometry.latent_height, geometry.latent_width)
        programs = [self._program(stage, watch) for stage in stages]
        with watch.stage("decode", geometry.num_frames) as report:
            done = 0
            for frames in self._vae.frames(latents, programs):
                done += len(frames)
                yield frames
                report(done)

    def _program(self, stage: Stage, watch: Watch) -> Callable[..., Any]:
        """The compiled stage, compiled on first use."""
        if stage.key not in self._programs:
            with watch.stage(f"compile {stage.name}", 1) as report:
                self._programs[stage.key] = stage.compile()
                report(1)
        return self._programs[stage.key]

    def _metadata(self, request: VideoRequest, geometry: Geometry, watch: Watch) -> dict[str, Any]:
        """Everything needed to make the same video again, and how long each stage took."""
        model, setting = self.model, self.model.denoiser.setting
        devices = model.mesh.devices
        return {
            "model": model.description.name,
            "model_revision": model.description.revision,
            "model_variant": model.description.variant,
            "defaults_from": dict(model.description.defaults_from),
            "request": dataclasses.asdict(request),
            "seed": request.seed,
            "tokens": geometry.num_tokens,
            "layout": str(model.layout),
            "sequence_parallel": model.layout.sequence_parallel,
            "weights": model.layout.weights,
            "attention": setting.implementation,
            "vae": self._vae.name,
            "dtype": str(jnp.dtype(model.dtype)),
            "device_kind": devices.flat[0].device_kind,
            "num_devices": int(devices.size),
            "num_processes": jax.process_count(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "seconds": {name: round(seconds, 3) for name, seconds in watch.seconds.items()},
        }


def make_noise(seed: int, geometry: Geometry, channels: int) -> np.ndarray:
    """The noise that diffusers' pipeline draws for this seed: torch's CPU generator, float32.

    Returns:
        `[1, channels, latent frames, latent height, latent width]`.
    """
    shape = (1, channels, geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).numpy()


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process holds onto the mesh."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _batch(request: VideoRequest) -> int:
    """Entries of the transformer's batch: guidance needs the prompt and the negative one."""
    return 2 if request.uses_guidance else 1


def _subset(params: dict[str, jax.Array], weights: list[Weight]) -> dict[str, jax.Array]:
    return {weight.name: params[weight.name] for weight in weights}
