"""Settings of a fleet that do not fit each other are refused, each in one line."""

import pytest
from pydantic import ValidationError

from server.settings import Settings
from wan_tpu.fleet.address import FleetAddress, parse_fleet

URL = "temporal://127.0.0.1:7233/default"
POSTGRES = "postgresql://user@host/jobs"
SLICE = {"fleet": URL, "role": "slice", "files": "s3://videos"}
API = {**SLICE, "role": "api", "database_url": POSTGRES}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"role": "slice"}, "WAN_TPU_ROLE=slice is a part of a fleet; set WAN_TPU_FLEET"),
        ({"role": "api"}, "WAN_TPU_ROLE=api is a part of a fleet; set WAN_TPU_FLEET"),
        ({"files": "s3://videos"}, "WAN_TPU_FILES is where a fleet's files lie"),
        ({**SLICE, "role": "all"}, "WAN_TPU_FLEET needs a WAN_TPU_ROLE"),
        ({**SLICE, "files": None}, "WAN_TPU_FLEET needs WAN_TPU_FILES"),
        ({**API, "database_url": None}, "WAN_TPU_ROLE=api needs a database that many servers"),
        ({**API, "database_url": "sqlite:////jobs"}, "WAN_TPU_ROLE=api needs a database"),
        ({**SLICE, "batch": 2}, "WAN_TPU_BATCH is 2, and a slice of a fleet makes one job"),
        ({**SLICE, "fleet_cert_file": "a.pem"}, "WAN_TPU_FLEET_KEY_FILE belong together"),
        ({**SLICE, "fleet_key_file": "a.key"}, "WAN_TPU_FLEET_KEY_FILE belong together"),
        (
            {
                **SLICE,
                "fleet_key_file": "a.key",
                "fleet_cert_file": "a.pem",
                "fleet_api_key_file": "key",
            },
            "WAN_TPU_FLEET_API_KEY_FILE takes the place of",
        ),
        *(
            ({**SLICE, "fleet": url}, "WAN_TPU_FLEET is temporal://HOST:PORT/NAMESPACE")
            for url in (
                "127.0.0.1:7233",
                "temporal://127.0.0.1:7233",
                "temporal://127.0.0.1/default",
                "temporal://127.0.0.1:0/default",
                "temporal://127.0.0.1:70000/default",
                "http://127.0.0.1:7233/default",
                "temporal://127.0.0.1:7233/default/more",
            )
        ),
    ],
)
def test_what_does_not_fit_is_refused(given, words):
    with pytest.raises(ValidationError) as refused:
        Settings(**given)
    (problem,) = refused.value.errors()
    assert words in problem["msg"]
    assert "\n" not in problem["msg"]


@pytest.mark.parametrize("given", [SLICE, API, {**SLICE, "fleet_api_key_file": "key"}])
def test_what_fits_is_taken(given):
    assert Settings(**given).role == given["role"]


def test_an_address_is_read():
    assert parse_fleet(URL) == FleetAddress(target="127.0.0.1:7233", namespace="default")
    found = parse_fleet("temporal://[::1]:7233/videos.a1b2c")
    assert found == FleetAddress(target="[::1]:7233", namespace="videos.a1b2c")
