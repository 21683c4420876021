"""What can be set about a fleet; see `server.settings`. Imports no package of the extra `fleet`."""

import pathlib
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

from wan_tpu.fleet.address import EXAMPLE, parse_fleet

Role = Literal["all", "api", "slice"]


class FleetSettings(BaseSettings):
    """The part of the settings that says which fleet this server belongs to, if any."""

    fleet: str | None = Field(
        default=None,
        description="temporal://HOST:PORT/NAMESPACE, which holds the jobs of many slices; default "
        "none: this server has one slice, and its jobs",
    )
    role: Role = Field(
        default="all",
        description="in a fleet `api`, which takes requests, or `slice`, which makes videos",
    )
    files: str | None = Field(
        default=None,
        description="where a fleet's files lie: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a folder "
        "that all have mounted",
    )
    files_redirect: bool = Field(
        default=False,
        description="whether clients read files from the bucket, by URLs that hold for minutes",
    )
    fleet_ca_file: pathlib.Path | None = Field(
        default=None, description="certificate that Temporal's is signed by; makes it TLS"
    )
    fleet_cert_file: pathlib.Path | None = Field(
        default=None, description="certificate of this server for Temporal: mutual TLS"
    )
    fleet_key_file: pathlib.Path | None = Field(
        default=None, description="the private key of that certificate"
    )
    fleet_api_key_file: pathlib.Path | None = Field(
        default=None, description="key for Temporal Cloud, instead of a certificate; makes it TLS"
    )
    fleet_heartbeat_seconds: float = Field(
        default=10,
        ge=1,
        description="how long a slice may be silent before its job is given to another",
    )
    slice_name: str | None = Field(
        default=None,
        pattern=r"^[\w.-]{1,63}$",
        description="what a slice is called; default its host's name and process",
    )
    model_seconds: float = Field(
        default=600,
        ge=30,
        description="how long a model is taken requests for after its last slice was seen",
    )


def check_fleet(settings: FleetSettings, *, database_url: str | None, batch: int) -> None:
    """Finds out whether the settings of a fleet fit each other.

    Args:
        settings: of the server.
        database_url: of its table of jobs, if one was named.
        batch: jobs that it is to make together.

    Raises:
        ValueError: they do not; says what to set.
    """
    if settings.fleet is None:
        if settings.role != "all":
            raise ValueError(
                f"WAN_TPU_ROLE={settings.role} is a part of a fleet; set WAN_TPU_FLEET, for "
                f"example {EXAMPLE}"
            )
        if settings.files is not None:
            raise ValueError(
                "WAN_TPU_FILES is where a fleet's files lie; set WAN_TPU_FLEET, too, or "
                "WAN_TPU_DATA_DIR instead"
            )
        return
    parse_fleet(settings.fleet)
    if settings.role == "all":
        raise ValueError(
            "WAN_TPU_FLEET needs a WAN_TPU_ROLE: api takes requests, slice makes videos"
        )
    if settings.files is None:
        raise ValueError(
            "WAN_TPU_FLEET needs WAN_TPU_FILES, where all its servers find the files, for example "
            "s3://videos or a folder that all have mounted"
        )
    if settings.role == "api" and (database_url or "sqlite").startswith("sqlite"):
        raise ValueError(
            "WAN_TPU_ROLE=api needs a database that many servers share; set WAN_TPU_DATABASE_URL, "
            "for example postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    if settings.role == "slice" and batch > 1:
        raise ValueError(
            f"WAN_TPU_BATCH is {batch}, and a slice of a fleet makes one job at a time; unset it"
        )
    _check_certificates(settings)


def _check_certificates(settings: FleetSettings) -> None:
    if (settings.fleet_cert_file is None) != (settings.fleet_key_file is None):
        raise ValueError(
            "WAN_TPU_FLEET_CERT_FILE and WAN_TPU_FLEET_KEY_FILE belong together; set both or none"
        )
    if settings.fleet_cert_file is not None and settings.fleet_api_key_file is not None:
        raise ValueError(
            "WAN_TPU_FLEET_API_KEY_FILE takes the place of WAN_TPU_FLEET_CERT_FILE; set one of them"
        )
