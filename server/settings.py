"""Everything that can be set, from environment variables with the prefix `WAN_TPU_`."""

import functools
import ipaddress
import math
import pathlib
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from server.fleet.settings import FleetSettings, check_fleet
from wan_tpu import errors
from wan_tpu.attention.names import IMPLEMENTATIONS
from wan_tpu.geometry import parse_size
from wan_tpu.media import MAX_MEDIA_BYTES
from wan_tpu.multihost.group import ProcessGroup, find_group
from wan_tpu.multihost.join import JOIN_SECONDS, PATIENCE_SECONDS
from wan_tpu.pipeline.names import DTYPES, QUANTIZE, VAES
from wan_tpu.pipeline.options import LoadOptions, listed

FINISHED_JOBS_PER_KEY, KEPT_BYTES_PER_KEY = 10_000, 100_000_000_000
"""What one of several keys may keep, unless it is set."""

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
LONGEST_SECONDS = 100 * 365 * 86_400
HOST_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?|\[[0-9a-f:.]+\]")
ORIGIN = re.compile(
    r"\*|https?://[a-z0-9_.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?"
)


def _split(value: object) -> object:
    """A comma-separated text as a tuple."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _never(value: object) -> object:
    """What people write for "keep them for ever", as None."""
    if isinstance(value, str):
        value = value.strip().lower()
    return None if value in ("", "never", "none", "inf", "infinity", math.inf) else value


Seconds = Annotated[float | None, BeforeValidator(_never)]
"""A time that may be never."""

Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(FleetSettings):
    """The settings of one server; the defaults serve wan-tiny from `./data` on loopback."""

    model_config = SettingsConfigDict(env_prefix="WAN_TPU_", frozen=True, allow_inf_nan=False)

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(
        default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one"
    )
    unix_socket: pathlib.Path | None = Field(
        default=None,
        description="socket file to listen at, instead of host and port; mode 0660, and who may "
        "connect its folder says",
    )
    allowed_hosts: Words = Field(
        default=(),
        description="further names, comma-separated, that a Host header may carry, without port; "
        "*.example.com is all below example.com, * is any",
    )
    cors_origins: Words = Field(
        default=(),
        description="origins, comma-separated, whose pages may use the API, for example "
        "https://app.example.com; * is any, where keys are asked for",
    )
    api_keys_file: pathlib.Path | None = Field(
        default=None,
        description="file of `python -m server keys`; without it loopback only, no keys",
    )
    operators: Words = Field(default=(), description="keys that may record profiles; default all")

    data_dir: pathlib.Path = Field(
        default=pathlib.Path("data"), description="files, and SQLite's database"
    )
    database_url: str | None = Field(
        default=None,
        description="postgresql://USER:PASSWORD@HOST/DATABASE or sqlite:////FILE; default SQLite",
    )
    database_timeout_seconds: float = Field(
        default=4, ge=1, description="how long the database may take to answer a call"
    )
    expiry_seconds: Seconds = Field(
        default=86_400,
        gt=0,
        le=LONGEST_SECONDS,
        description="how long a finished job and its files are kept; never keeps them",
    )
    trash_seconds: float = Field(
        default=604_800,
        gt=0,
        description="how long files that belong to no known job are kept in the trash",
    )
    min_free_bytes: int = Field(
        default=500_000_000, ge=0, description="with less free disk than this no work is taken"
    )

    model: str = Field(default="wan-tiny", description="wan-tiny, a diffusers folder, or a hub id")
    served_model_name: str | None = Field(
        default=None,
        pattern=r"^[\w.:@/+-]{1,128}$",
        description="what clients call the model; default its own name, or its folder's",
    )
    adapters: pathlib.Path | None = Field(
        default=None,
        description="folder of adapters that requests may name; what is put there is there at once",
    )
    variant: str | None = Field(
        default=None, description="of the weights' files, as diffusers names them, for example fp16"
    )
    layout: str | None = Field(
        default=None,
        description="split over devices, for example dp2-sp4 or dp2-sp4 ring replicated; default "
        "chosen for the devices",
    )
    attention: str = Field(default="auto", description=listed(IMPLEMENTATIONS))
    vae: str = Field(default="flax", description=listed(VAES))
    vae_dtype: str | None = Field(
        default=None, description=f"of the VAE, {listed(DTYPES)}; default that of the rest"
    )
    dtype: str | None = Field(
        default=None, description=f"{listed(DTYPES)}; default bfloat16, on a CPU float32"
    )
    quantize: str | None = Field(
        default=None,
        description=f"weights and products of the transformer's blocks, {' or '.join(QUANTIZE)}; "
        "default as the rest",
    )
    host_devices: int | None = Field(
        default=None, ge=1, description="virtual CPU devices, no accelerator"
    )
    warm_up: Words = Field(
        default=(),
        description="WxHxFRAMES to compile at start, comma-separated; default the model's own",
    )
    cache_dir: pathlib.Path | None = Field(
        default=None,
        description="where compiled programs are kept; default the user's cache folder",
    )
    coordinator: str | None = Field(
        default=None,
        description="HOST:PORT where process 0 of several listens; a TPU slice needs it not",
    )
    processes: int | None = Field(
        default=None, ge=1, description="how many processes share the model; 1 for one alone"
    )
    process_id: int | None = Field(
        default=None, ge=0, description="which of them this is; 0 serves, the others follow it"
    )
    group_secret_file: pathlib.Path | None = Field(
        default=None,
        description="secret by which they know each other; needed unless they are on loopback",
    )
    join_timeout_seconds: float = Field(
        default=JOIN_SECONDS, gt=0, description="how long to wait for all processes at the start"
    )
    peer_timeout_seconds: float = Field(
        default=PATIENCE_SECONDS,
        ge=3,
        description="how long another process may be silent or behind",
    )

    engine: str = Field(
        default="server.engine.pipeline:PipelineEngine",
        description="what makes the videos, module:class",
    )
    start_timeout_seconds: float = Field(
        default=3600, gt=0, description="how long loading and compiling may take"
    )

    job_timeout_seconds: float = Field(default=3600, gt=0, description="how long one job may run")
    stop_grace_seconds: float = Field(
        default=30,
        ge=0,
        description="how long a job that was cancelled, or is past its timeout, may take to stop",
    )
    stall_seconds: float = Field(
        default=60,
        ge=3,
        description="how long the engine may be silent or at one step, or 5 of its longest",
    )
    compile_timeout_seconds: float = Field(
        default=1800, gt=0, description="how long compiling one program may take inside a job"
    )
    drain_seconds: float = Field(default=30, ge=0, description="for the running job after SIGTERM")
    max_attempts: int = Field(
        default=3, ge=1, description="times a job is started before it counts lost"
    )
    max_failures: int = Field(
        default=3,
        ge=1,
        description="failures of the engine in a row after which it has to prove itself",
    )

    batch: int = Field(default=1, ge=1, le=8, description="jobs made together, where it is faster")
    batch_wait_seconds: float = Field(default=0, ge=0, description="to wait for others like a job")
    batch_delay_seconds: float = Field(
        default=10, ge=0, description="that the steps of a job may take longer for others' sake"
    )

    max_queued_jobs: int = Field(default=1000, ge=1, description="jobs that may wait")
    max_queued_jobs_per_key: int | None = Field(
        default=None,
        ge=1,
        description="jobs of one key that may wait; default a quarter of all, where there are keys",
    )
    max_finished_jobs_per_key: int | None = Field(
        default=None,
        ge=1,
        description="finished jobs of one key that are kept; default 10000, where there are keys",
    )
    max_kept_bytes_per_key: int | None = Field(
        default=None,
        ge=1,
        description="bytes of one key's videos; default 100000000000, where there are keys",
    )
    max_requests_per_second: float = Field(default=1000, gt=0, description="requests of one key")
    max_anonymous_requests_per_second: float = Field(
        default=500, gt=0, description="requests of one address that carry no key that is known"
    )
    max_event_streams: int = Field(default=256, ge=1, description="event streams open at a time")
    max_event_streams_per_key: int = Field(default=64, ge=1, description="those of one key")
    max_connections: int = Field(
        default=1000, ge=1, description="connections open at a time; more are turned away"
    )
    max_connections_per_address: int = Field(
        default=500,
        ge=1,
        description="of one address; raise it behind a proxy, which has one for all",
    )
    write_timeout_seconds: float = Field(
        default=30, gt=0, description="how long a client may read nothing of what waits for it"
    )
    max_body_bytes: int = Field(
        default=131_072,
        ge=1,
        description="size of a body but for files: two prompts of 4000 characters, however escaped",
    )
    max_upload_bytes: int = Field(
        default=20 << 20,
        ge=1,
        le=MAX_MEDIA_BYTES,
        description="size of one picture or clip, where the model takes any",
    )
    body_timeout_seconds: float = Field(
        default=10,
        gt=0,
        description="how long a head, then a body, may take; 250 kB of it give a second more",
    )
    max_prompt_characters: int = Field(default=4000, ge=1, description="length of a prompt")
    max_work: float = Field(
        default=8,
        gt=0,
        description="pixels x frames x steps of a job, over those of the model's default",
    )
    poll_after_ms: int = Field(default=500, ge=1, description="how often clients are asked to poll")
    log_level: str = Field(default="info", description="debug, info, warning or error")

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.unix_socket is not None and {"host", "port"} & self.model_fields_set:
            raise ValueError(
                "WAN_TPU_UNIX_SOCKET takes the place of WAN_TPU_HOST and WAN_TPU_PORT; "
                "set the one or the others"
            )
        for name in self.allowed_hosts:
            if not HOST_NAME.fullmatch(name.lower()):
                raise ValueError(
                    f"WAN_TPU_ALLOWED_HOSTS has {name!r}, expected a name without scheme, port and "
                    "path, for example wan.example.com, *.example.com or [::1]"
                )
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin.lower()):
                raise ValueError(
                    f"WAN_TPU_CORS_ORIGINS has {origin!r}, expected an origin without a path, for "
                    "example https://app.example.com or http://localhost:3000"
                )
        if "*" in self.cors_origins and self.api_keys_file is None:
            raise ValueError(
                "WAN_TPU_CORS_ORIGINS=* without WAN_TPU_API_KEYS_FILE would let every page that "
                "somebody here looks at use the service; name the origins, or set up keys"
            )
        is_open = not self.is_loopback and self.unix_socket is None
        if self.api_keys_file is None and is_open and self.role != "slice":  # which has no routes
            raise ValueError(
                f"WAN_TPU_HOST={self.host} is open to others and there is no WAN_TPU_API_KEYS_FILE;"
                " set one (`python -m server keys add NAME`) or listen on 127.0.0.1"
            )
        check_fleet(self, database_url=self.database_url, batch=self.batch)
        if self.log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError(f"WAN_TPU_LOG_LEVEL is {self.log_level!r}, expected info or debug")
        try:
            _ = self.load_options  # finds what is wrong with it
            for text in self.warm_up:
                parse_warm_up(text)
            if (self.coordinator, self.processes, self.process_id) != (None, None, None):
                _ = self.group  # finds what is wrong with it
        except errors.InputError as error:
            raise ValueError(str(error)) from None
        return self

    @functools.cached_property
    def load_options(self) -> LoadOptions:
        """What the model is loaded with."""
        return LoadOptions.from_text(
            model=self.model,
            variant=self.variant,
            layout=self.layout,
            attention=self.attention,
            vae=self.vae,
            vae_dtype=self.vae_dtype,
            dtype=self.dtype,
            quantize=self.quantize,
            host_devices=self.host_devices,
            adapter_folder=self.adapters,
        )

    @functools.cached_property
    def group(self) -> ProcessGroup:
        """The processes that share the model; on a TPU VM its metadata says which."""
        return find_group(self.coordinator, self.processes, self.process_id, self.group_secret_file)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.unix_socket is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def hosts(self) -> frozenset[str]:
        """Names that a Host header may carry; `*` is any.

        On loopback others are refused, because a page of a foreign site whose name is made to
        point here could read everything; elsewhere, and on a Unix socket that others reach through
        a proxy, the key stands in front.
        """
        is_behind_keys = self.api_keys_file is not None
        is_elsewhere = not self.is_loopback if self.unix_socket is None else is_behind_keys
        if is_elsewhere and not self.allowed_hosts:
            return frozenset(("*",))
        host = f"[{self.host}]" if ":" in self.host else self.host
        names = (name.lower() for name in (*LOOPBACK_HOSTS, host, *self.allowed_hosts))
        return frozenset(name.rstrip(".") for name in names)

    @property
    def queue_share(self) -> int:
        """Jobs of one key that may wait: the others must find room, too."""
        if self.max_queued_jobs_per_key is not None:
            return self.max_queued_jobs_per_key
        return self.max_queued_jobs if self.api_keys_file is None else -(-self.max_queued_jobs // 4)

    @property
    def finished_share(self) -> float:
        """Finished jobs of one key that are kept; infinity without keys, for there is one user."""
        return self._share(self.max_finished_jobs_per_key, FINISHED_JOBS_PER_KEY)

    @property
    def kept_bytes_share(self) -> float:
        """Bytes of one key's videos that are kept; infinity likewise."""
        return self._share(self.max_kept_bytes_per_key, KEPT_BYTES_PER_KEY)

    def _share(self, given: int | None, default: int) -> float:
        if given is not None:
            return given
        return math.inf if self.api_keys_file is None else default

    @property
    def database(self) -> str:
        """The SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'jobs.sqlite'}"


def parse_warm_up(text: str) -> tuple[int, int, int]:
    """Reads `WxHxFRAMES` as (width, height, frames).

    Raises:
        InputError: it has another form.
    """
    match = re.fullmatch(r"([0-9]+x[0-9]+)x([1-9][0-9]{0,5})", text)
    if match is None:
        raise errors.InputError(
            f"a size to warm up is WIDTHxHEIGHTxFRAMES, for example 832x480x81, got {text!r}"
        )
    return *parse_size(match[1]), int(match[2])
