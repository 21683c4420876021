"""What gcloud's errors are taken for: one kind is not another, though they share words."""

import pytest

from tests.deploy.conftest import ROOT

QUOTA, CAPACITY, ROLE = "iam-admin/quotas (filter: TPU)", "--queued to wait", "roles/tpu.admin"
NODE = "projects/p/locations/us-east5-b/nodes/wan"

ERRORS = [
    # Signed in, and gcloud itself.
    ("You do not currently have an active account selected.", "gcloud auth login"),
    ("There was a problem refreshing your current auth tokens: x", "gcloud auth login"),
    ("UNAUTHENTICATED: Request had invalid authentication credentials.", "gcloud auth login"),
    ("Request had insufficient authentication scopes.", "gcloud auth login"),
    ("Invalid choice: 'alpha'.", "components install alpha"),
    ("(gcloud.compute.tpus) Invalid choice: 'queued-resources'.", "gcloud components update"),
    (
        "(gcloud.compute.tpus.queued-resources.create) unrecognized arguments:\n"
        "  --provisioning-model=flex-start",
        "gcloud components update",
    ),
    # "quota" in words about something else.
    ("The tpu.googleapis.com API requires a quota project, which is not set", "no quota of a TPU"),
    ("Cannot add the project 'x' as quota project: serviceusage.services.use", "no quota of a TPU"),
    (
        "PERMISSION_DENIED: Caller does not have required permission to use project p. Grant the "
        "caller the roles/serviceusage.serviceUsageConsumer role",
        "no quota of a TPU",
    ),
    ("reason: USER_PROJECT_DENIED", "no quota of a TPU"),
    ("PERMISSION_DENIED: Permission 'serviceusage.quotas.get' denied", "serviceusage.quotas.get"),
    (
        "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Read requests' and limit 'Read "
        "requests per minute' of service 'tpu.googleapis.com'",
        "wait a minute",
    ),
    ("Quota 'IN_USE_ADDRESSES' exceeded. Limit: 8.0 in region us-east5.", "--ssh internal"),
    ("Quota 'SSD_TOTAL_GB' exceeded. Limit: 500.0 in region us-east5.", "quota SSD_TOTAL_GB"),
    # The TPU's own.
    ("RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPerProjectPerZone' has been exceeded.", QUOTA),
    ("Quota 'PREEMPTIBLE_TPUS_PER_TPU_FAMILY' exceeded. Limit: 0.0", QUOTA),
    ("You do not have enough quota for this", QUOTA),
    ("reason: QUOTA_EXCEEDED", QUOTA),
    # Billing, which comes with the words of a missing role.
    ("PERMISSION_DENIED: This API method requires billing to be enabled. Please enable", "billing"),
    ("PERMISSION_DENIED: reason: BILLING_DISABLED", "billing is off"),
    ("FAILED_PRECONDITION: Billing account for project '1' is not found.", "billing is off"),
    ("FAILED_PRECONDITION: Billing must be enabled for activation", "billing is off"),
    # An API that is off: which one.
    ("Cloud TPU API has not been used in project 1 before or it is disabled", "enable tpu.google"),
    ("API [iap.googleapis.com] not enabled on project [1].", "enable iap.googleapis.com"),
    (
        "PERMISSION_DENIED: Compute Engine API has not been used in project 1 before or it is "
        "disabled. Enable it by visiting https://console.developers.google.com/apis/api/"
        "compute.googleapis.com/overview?project=1",
        "enable compute.googleapis.com",
    ),
    # Room, place, type.
    ('There is no more capacity in the zone "us-east5-b"; try another zone', CAPACITY),
    ("ZONE_RESOURCE_POOL_EXHAUSTED", CAPACITY),
    ("acceleratorType v6e-16: there is not enough capacity", CAPACITY),
    ("Permission denied on 'locations/us-east5-z' (or it may not exist).", "locations list"),
    ("Location us-east5-z is not found or access is unauthorized.", "locations list"),
    ("Invalid value for field 'zone': 'us-east5'. Unknown zone.", "locations list"),
    ("INVALID_ARGUMENT: unsupported location 'moon-1'", "locations list"),
    ('NOT_FOUND: Accelerator type "v6e-16" not found in zone', "accelerator-types list"),
    ("Accelerator type v6e-16 is not available in zone us-east5-b", "accelerator-types list"),
    ("Invalid accelerator type 'v6e-16'", "accelerator-types list"),
    (
        "Resource 'projects/p/locations/us-east5-b/acceleratorTypes/v6e-16' was not found",
        "accelerator-types list",
    ),
    ("INVALID_ARGUMENT: 'v6e-16' is not a valid accelerator type", "accelerator-types list"),
    ("TPU type v6e-16 is not offered in us-east5-b", "accelerator-types list"),
    ("The zone 'projects/p/zones/us-east5-z' does not exist.", "locations list"),
    ("(gcloud) us-east5-z is not a valid zone", "locations list"),
    ("Runtime version v9 is not supported", "versions list"),
    # Who may.
    ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", ROLE),
    (f"Permission 'tpu.nodes.create' denied on '{NODE}' (or it may not exist)", ROLE),
    ("Permission 'tpu.acceleratortypes.list' denied on resource (or it may not exist)", ROLE),
    ("User does not have permission to access projects instance [p]", ROLE),
    ("Permission 'iam.serviceAccounts.actAs' denied on service account", "serviceAccountUser"),
    ("Permission 'compute.networks.use' denied on resource", "a role with compute.networks.use"),
    ("Project 'nope' not found or deleted", "gcloud projects list"),
    ("Permission denied on resource project nope. reason: CONSUMER_INVALID", "projects list"),
    # What was left out.
    ("Failed to find attribute [zone].", "--zone"),
    ("The required property [project] is not set", "--project"),
    ("The required property [compute/zone] is not currently set.", "--zone"),
    ("(gcloud.alpha.compute.start-iap-tunnel) Error while connecting [4003: 'x']", "35.235.240.0"),
    ("ALREADY_EXISTS: Resource already exists", "status NAME"),
    # Nothing is known of these.
    (f"NOT_FOUND: Resource '{NODE}' was not found", None),
    ("INTERNAL: an internal error has occurred", None),
]


@pytest.fixture
def hints(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "deploy"))
    from wan_tpu_deploy import hints

    return hints


@pytest.mark.parametrize(("error", "advice"), ERRORS, ids=[error[:60] for error, _ in ERRORS])
def test_each_error_is_taken_for_its_kind(hints, error, advice):
    found = hints.find_hint(f"ERROR: {error}")
    if advice is None:
        assert found is None
    else:
        assert found is not None
        assert advice in found


def test_the_advice_of_every_kind_is_reached(hints):
    reached = {hints.find_hint(error) for error, _ in ERRORS}
    for hint in hints.HINTS:
        parts = hint.advice.split("{0}")
        assert any(found and all(part in found for part in parts) for found in reached), hint


@pytest.mark.parametrize("word", ["quota", "zone", "billing", "alpha"])
def test_names_in_the_command_are_not_its_error(cloud, word):
    """A project may be called as errors are."""
    cloud.answer("tpu-vm list", err="ERROR: INTERNAL: try later\n", exit=1)
    name = f"{word}-not-found-exceeded"
    done = cloud.run("status", "wan", "--project", name[:30], "--zone", "us-east5-b")
    assert done.returncode == 1
    assert "try later" in done.stderr
    assert "->" not in done.stderr
