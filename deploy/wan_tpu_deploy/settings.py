"""Settings: flags before the settings file before defaults, each with where it came from.

The environment is not read: gcloud has its own variables, and a setting that nobody sees is how a
slice ends up in the wrong project.
"""

import argparse
import configparser
import dataclasses
import pathlib
import re
from typing import Optional, Union

from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.settings_file import NAME, SHARED_SECTION, read_section

DEFAULT_FILE = pathlib.Path("wan-tpu-deploy.ini")

DEFAULTS: dict[str, str] = {
    "project": "",
    "zone": "",
    "account": "",
    "type": "",
    "runtime-version": "",
    "slices": "1",
    "spot": "no",
    "queued": "no",
    "max-run-duration": "",
    "valid-until-duration": "",
    "network": "",
    "subnetwork": "",
    "service-account": "",
    "labels": "",
    "data-disk": "",
    "ssh": "iap",
    "repository": "",
    "ref": "",
    "bucket": "",
    "model": "wan-tiny",
    "layout": "",
    "port": "8000",
    "env-file": "",
    "api-keys-file": "",
    "context": "",
    "namespace": "",
    "topology": "",
    "queue": "",
    "image": "",
}
"""Every key of the settings file and its default; "" leaves it to gcloud or to the service."""

HELP = {
    "project": "Google Cloud project; gcloud's own when left out",
    "zone": "zone of the slices, for example us-east5-b; gcloud's compute/zone when left out",
    "account": "Google account that gcloud acts as",
    "type": "accelerator type, for example v6e-16",
    "runtime-version": "software of the VM; by default the one of the accelerator type",
    "slices": "this many slices, each a service of its own (default 1)",
    "spot": "spot capacity: cheaper, and taken away at any moment",
    "queued": "wait in Google's queue until there is capacity",
    "max-run-duration": "end the slice after this long, for example 4h (flex-start, with --queued)",
    "valid-until-duration": "give up the place in the queue after this long, for example 6h",
    "network": "VPC network",
    "subnetwork": "subnetwork of it",
    "service-account": "service account of the machines; needs to read the bucket",
    "labels": "more labels, KEY=VALUE,KEY=VALUE",
    "data-disk": "GB of a disk for jobs, models and compiled programs, for example 500; slices of "
    "one worker only; outlives the slice",
    "ssh": "how workers are reached: iap, external or internal addresses (default iap)",
    "repository": "git URL that the workers install from; by default this checkout's origin",
    "ref": "commit, tag or branch; by default this checkout's commit",
    "bucket": "gs://BUCKET[/FOLDER]: --model is a folder in it, copied to each worker's disk",
    "model": "name or hub id, also at a revision (owner/name@commit), folder on the workers, or "
    "folder in --bucket (default wan-tiny)",
    "layout": "how the model is split, for example dp2-sp8; chosen when left out",
    "port": "port of the service (default 8000)",
    "env-file": "local file with more WAN_TPU_... lines for the service; may hold secrets",
    "api-keys-file": "local file with the API keys of the service",
    "context": "of kubectl's configuration: the cluster; kubectl's current one when left out",
    "namespace": "of the cluster (default wan-tpu)",
    "topology": "slice of a cluster, for example v6e-16 or tpu7x-2x2x2; by default --type",
    "queue": "Kueue's LocalQueue in which a run waits (default wan-tpu-training)",
    "image": "of the container, for example images.example.com/wan-tpu:v1",
}
SWITCHES = ("spot", "queued")
SSH_WAYS = ("iap", "external", "internal")
LOCAL_FILES = ("env-file", "api-keys-file")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is to be done with which slices.

    Attributes:
        name: of the deployment; the slice's name, or its beginning when there are several.
        values: one for each key of `DEFAULTS`.
        origins: where each value came from.
        file: the settings file, whether it is there or not.
        note: what may be missing in it, or "".
    """

    name: str
    values: dict[str, str]
    origins: dict[str, str]
    file: pathlib.Path = DEFAULT_FILE
    note: str = ""

    def __getitem__(self, key: str) -> str:
        return self.values[key]

    def switch(self, key: str) -> bool:
        """Whether a yes/no setting says yes."""
        return self.values[key] == "yes"

    def required(self, key: str) -> str:
        """A setting that this verb cannot do without.

        Raises:
            DeployError: it is not set.
        """
        value = self.values[key]
        if not value:
            example = HELP[key]
            raise DeployError(
                f"{key} is not set ({example}): give --{key}, or write it in {self.file} under "
                f"[{self.name}] or [{SHARED_SECTION}]"
            )
        return value

    @property
    def num_slices(self) -> int:
        """How many slices the deployment has."""
        return int(self.values["slices"])

    def describe(self) -> str:
        """What is set, a line for each place where it was set."""
        places: dict[str, list[str]] = {}
        for key, value in self.values.items():
            if value and value != "no":
                places.setdefault(self.origins[key], []).append(f"{key}={value}")
        lines = [f"#   {place}: {' '.join(pairs)}" for place, pairs in places.items()]
        return "\n".join([*lines, *([f"# note: {self.note}"] if self.note else [])])


def add_flags(parser: argparse._ActionsContainer, keys: tuple[str, ...]) -> None:
    """Gives a parser a flag for each of the settings."""
    for key in keys:
        if key in SWITCHES:
            parser.add_argument(
                f"--{key}", action=argparse.BooleanOptionalAction, default=None, help=HELP[key]
            )
        else:
            parser.add_argument(f"--{key}", metavar=key.upper(), help=HELP[key])


def read_settings(
    name: str, flags: dict[str, Union[str, bool, None]], file: Optional[str]
) -> Settings:
    """Puts flags, file and defaults together, and checks what can be checked here.

    Raises:
        DeployError: no such file, an unknown key, or a value that cannot be meant.
    """
    values, origins = dict(DEFAULTS), dict.fromkeys(DEFAULTS, "default")
    path = pathlib.Path(file) if file else DEFAULT_FILE
    note = ""
    if file or path.exists():
        said, note = _read_file(path, name)
        for key, value in said.items():
            values[key], origins[key] = value, str(path)
    for key, value in flags.items():
        if value is not None:
            values[key] = ("yes" if value else "no") if key in SWITCHES else str(value)
            origins[key] = "flag"
    for key in LOCAL_FILES:
        values[key] = _expand(key, values[key])
    settings = Settings(name, values, origins, path, note)
    _check(settings)
    return settings


def _expand(key: str, value: str) -> str:
    """`~/x` as the shell would have it: in the settings file no shell does it."""
    try:
        return str(pathlib.Path(value).expanduser()) if value else value
    except RuntimeError:
        raise DeployError(f"{key} is {value!r}, and there is no such user's home folder") from None


def _read_file(path: pathlib.Path, name: str) -> tuple[dict[str, str], str]:
    """What the file says about this deployment, each key one of ours, each switch yes or no."""
    values, note = read_section(path, name)
    unknown = sorted(set(values) - set(DEFAULTS))
    if unknown:
        raise DeployError(
            f"{path}: unknown setting {unknown[0]!r}; there are {', '.join(DEFAULTS)}"
        )
    for key in values.keys() & set(SWITCHES):
        word = values[key].lower()
        if word not in configparser.ConfigParser.BOOLEAN_STATES:
            raise DeployError(f"{path}: {key} is {values[key]!r}; expected yes or no")
        values[key] = "yes" if configparser.ConfigParser.BOOLEAN_STATES[word] else "no"
    return values, note


_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}")
_WORD = re.compile(r"[^\s\"'\\$`;&|<>(){}*?!\x00-\x1f\x7f]+")
_ZONE = re.compile(r"([a-z]+-[a-z]+[0-9]+)-[a-z0-9]+")
_REGION = re.compile(r"[a-z]+-[a-z]+[0-9]+")
_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]|[0-9]+")


def _check_place(settings: Settings) -> None:
    """Looks at zone and project before gcloud does, which answers a wrong one with many words."""
    zone, project = settings["zone"], settings["project"]
    if zone and not _ZONE.fullmatch(zone):
        lower = zone.lower()
        if _REGION.fullmatch(lower):
            expected = f"a region; expected one of its zones, such as {lower}-b"
        elif _ZONE.fullmatch(lower):
            expected = f"not in lower case; expected {lower}"
        else:
            expected = "not a zone; expected REGION-LETTER, such as us-east5-b"
        raise DeployError(f"zone is {zone!r}, {expected}")
    if project and not _PROJECT.fullmatch(project):
        raise DeployError(
            f"project is {project!r}; expected a project's id (not its name): 6 to 30 lower-case "
            "letters, digits and hyphens, such as my-project-1234; see  gcloud projects list"
        )


def _check(settings: Settings) -> None:
    if not NAME.fullmatch(settings.name):
        raise DeployError(
            f"the name {settings.name!r} cannot be a TPU's: lower-case letters, digits, hyphens; "
            "a letter first; at most 50; for example wan-1"
        )
    for key, value in settings.values.items():
        if value and not _WORD.fullmatch(value):
            raise DeployError(
                f"{key} is {value!r}: spaces, quotes and shell characters are refused"
            )
    _check_place(settings)
    slices, port, ssh = settings["slices"], settings["port"], settings["ssh"]
    if not re.fullmatch("[0-9]{1,3}", slices) or not 1 <= int(slices) <= 64:
        raise DeployError(f"slices is {slices!r}; expected a number from 1 to 64")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1024 <= int(port) <= 65535:
        raise DeployError(f"port is {port!r}; expected a number from 1024 to 65535, such as 8000")
    if ssh not in SSH_WAYS:
        raise DeployError(f"ssh is {ssh!r}; expected one of {', '.join(SSH_WAYS)}")
    for label in settings["labels"].split(","):
        if label and not _LABEL.fullmatch(label):
            raise DeployError(f"label {label!r} is not KEY=VALUE in lower-case letters and digits")
    disk = settings["data-disk"]
    if disk and not (re.fullmatch("[0-9]{1,5}", disk) and 10 <= int(disk) <= 65536):
        raise DeployError(f"data-disk is {disk!r}; expected GB, from 10 to 65536, such as 500")
    bucket = settings["bucket"]
    if bucket and not bucket.startswith("gs://"):
        raise DeployError(f"bucket is {bucket!r}; expected gs://BUCKET or gs://BUCKET/FOLDER")
    for key in ("max-run-duration", "valid-until-duration"):
        value = settings[key]
        if value and not re.fullmatch(r"(\d+[smhd])+", value):
            raise DeployError(f"{key} is {value!r}; expected a duration such as 4h, 90m or 1d12h")
        if value and not settings.switch("queued"):
            raise DeployError(f"gcloud has --{key} for queued resources only: add --queued")
    if settings["max-run-duration"] and settings.switch("spot"):
        raise DeployError(
            "--max-run-duration is Google's flex-start, which is not --spot: drop one"
        )
