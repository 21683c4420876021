"""Where a fleet's jobs are held, and by which files one gets in; imports no package of it."""

import dataclasses
import pathlib
import re

from wan_tpu.errors import InputError, WanTpuError

EXAMPLE = "temporal://127.0.0.1:7233/default"


class FleetError(WanTpuError):
    """The fleet cannot be joined; says what to do."""


class FleetUrlError(FleetError, InputError):
    """What names the fleet is not written as it should be."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetAddress:
    """Where a fleet's jobs are held.

    Attributes:
        target: `HOST:PORT` of Temporal's frontend, an IPv6 address in brackets.
        namespace: of the jobs there.
    """

    target: str
    namespace: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FleetKeys:
    """Files by which the connection is encrypted, and says who it is; none are needed.

    Attributes:
        ca: certificate that Temporal's is signed by; makes it TLS.
        cert: certificate of this process, and `key` its private key: mutual TLS.
        key: see `cert`.
        api_key: key for Temporal Cloud instead; makes it TLS.
        called: what whoever names such a file knows it by, with `{}` for its name here.
    """

    ca: pathlib.Path | None = None
    cert: pathlib.Path | None = None
    key: pathlib.Path | None = None
    api_key: pathlib.Path | None = None
    called: str = "--fleet-{}-file"

    def setting(self, name: str) -> str:
        """What names a file: `ca`, `cert`, `key` or `api_key`."""
        is_variable = self.called.isupper()
        return self.called.format(name.upper() if is_variable else name.replace("_", "-"))

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where none is named.

        Raises:
            FleetError: it cannot be read.
        """
        path = getattr(self, name)
        try:
            return None if path is None else path.read_bytes()
        except OSError as error:
            raise FleetError(
                f"cannot read {path}: {error.strerror}; see {self.setting(name)}"
            ) from None


def parse_fleet(url: str, *, setting: str = "WAN_TPU_FLEET") -> FleetAddress:
    """Reads `temporal://HOST:PORT/NAMESPACE`.

    Args:
        url: of a fleet.
        setting: what whoever wrote it knows it by.

    Raises:
        FleetUrlError: it has another form; says which one is meant.
    """
    match = re.fullmatch(
        r"temporal://((?:\[[0-9a-fA-F:]+\]|[\w.-]+):([0-9]{1,5}))/([\w.-]{2,255})", url
    )
    if match is None or not 0 < int(match[2]) < 65536:
        raise FleetUrlError(
            f"{setting} is temporal://HOST:PORT/NAMESPACE, for example {EXAMPLE}, got {url!r}"
        )
    return FleetAddress(target=match[1], namespace=match[3])
