"""What can be set about a fleet; see `server.settings`. Imports no package of the extra `fleet`."""

import pathlib
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

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
