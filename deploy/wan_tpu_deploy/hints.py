"""What gcloud's errors mean, and what to do about each kind."""

import dataclasses
import re
from typing import Optional


@dataclasses.dataclass(frozen=True)
class Hint:
    """One kind of error.

    Attributes:
        pattern: what gcloud says, as a regular expression; case does not count.
        advice: what to do; `{0}` is the pattern's first group that fits.
        made_nothing: Google refused before anything was made, so nothing is there and costs.
    """

    pattern: str
    advice: str
    made_nothing: bool = True

    def read(self, error: str) -> Optional[str]:
        """The advice, or None for another kind of error."""
        match = re.search(self.pattern, error, re.IGNORECASE)
        if match is None:
            return None
        groups = [group for group in match.groups() if group]
        return self.advice.format(*groups[:1] or ("",))


_TPU_ROLE = (
    "this account may not: it needs roles/tpu.admin in the project; check with  gcloud config "
    "list  and give another with --account or --project"
)

HINTS = (
    Hint(
        r"do not currently have an active account|reauthentication|invalid_grant"
        r"|refreshing your current auth tokens|credentials .{0,40}(expired|not found|invalid)"
        r"|UNAUTHENTICATED|insufficient authentication scopes",
        "not signed in: run  gcloud auth login",
    ),
    Hint(
        r"invalid choice: '(?:alpha|beta)'|components install (?:alpha|beta)",
        "run  gcloud components install alpha",
    ),
    Hint(
        r"invalid choice: '|unrecognized arguments?:",
        "this gcloud is older than the command: run  gcloud components update  (or update the "
        "package google-cloud-cli, where it came as one)",
    ),
    Hint(
        r"quota[ _]project|USER_PROJECT_DENIED|serviceusage\.services\.use\b"
        r"|serviceUsageConsumer|required permission to use project",
        "no quota of a TPU is meant: Google wants to know which project the calls of gcloud count "
        "for, and this account may not use the one it has. Run  gcloud config set "
        "billing/quota_project PROJECT  and have roles/serviceusage.serviceUsageConsumer in it",
    ),
    Hint(
        r"BILLING_DISABLED|requires billing|enable billing|billing to be enabled"
        r"|billing (?:account|must be|is|has been|not)\b|BILLING_NOT_FOUND",
        "billing is off in this project: link an account on console.cloud.google.com/billing, wait "
        "some minutes and try again; or give another --project",
    ),
    Hint(
        r"API \[([a-z]+\.googleapis\.com)\] (?:is )?not enabled",
        "that API is off in this project: run  gcloud services enable {0}  and wait a minute",
    ),
    Hint(
        r"(?:has not been used in|SERVICE_DISABLED)[\s\S]*?(?:apis/api/|service: ?'?)"
        r"([a-z]+\.googleapis\.com)",
        "that API is off in this project: run  gcloud services enable {0}  and wait a minute",
    ),
    Hint(
        r"Compute Engine API has not been used",
        "that API is off in this project: run  gcloud services enable compute.googleapis.com",
    ),
    Hint(
        r"has not been used in project|SERVICE_DISABLED|API is not enabled|it is disabled\. Enable",
        "the TPU API is off in this project: run  gcloud services enable tpu.googleapis.com",
    ),
    Hint(
        r"RATE_LIMIT_EXCEEDED|requests? per (?:minute|day|second)|too many requests",
        "too many calls for now, it is not the TPU's quota: wait a minute and run it again",
        made_nothing=False,
    ),
    Hint(
        r"quota '?(?:IN_USE_ADDRESSES|STATIC_ADDRESSES|EXTERNAL_[A-Z_]+)",
        "the region's quota of external addresses is used up: --ssh internal needs none; or ask "
        "for more on console.cloud.google.com/iam-admin/quotas",
    ),
    Hint(
        r"quota(?: limit)? '(?![^']*tpu)([^']+)' (?:has been |was )?exceeded",
        "the quota {0} is used up, which is not the TPU's: ask for more on "
        "console.cloud.google.com/iam-admin/quotas, or try another --zone",
    ),
    Hint(
        r"quota limit|QUOTA_EXCEEDED|quota[^.\n]{0,200}exceed|exceed[^.\n]{0,80}quota"
        r"|(?:insufficient|no|enough|available) quota",
        "the project's quota for this TPU in this zone is used up or was never granted. See it and "
        "ask for more on console.cloud.google.com/iam-admin/quotas (filter: TPU); spot and queued "
        "flex-start draw on the preemptible quota, so --spot may fit; queued resources that failed "
        "or were suspended still hold quota:  deploy/wan-tpu-deploy delete NAME  finds them",
    ),
    Hint(
        r"iam\.serviceAccounts\.actAs|access to service account|service account\b[^\n]*not exist",
        "this account may not give machines that service account: it needs "
        "roles/iam.serviceAccountUser on it; check the name behind --service-account",
    ),
    Hint(
        r"permission '?(?!tpu\.)([a-z]+\.[a-z]+\.[a-z]+)'? denied",
        "this account may not: it needs a role with {0} in the project; check with  "
        "gcloud config list  and give another with --account or --project",
    ),
    Hint(
        r"permission '?tpu\.[a-z.]+'? (?:was )?denied",
        _TPU_ROLE,
    ),
    Hint(
        r"no more capacity|insufficient (?:capacity|resources)|stockout|RESOURCE_POOL_EXHAUSTED"
        r"|not have enough (?:resources|capacity)|not enough (?:resources|capacity)"
        r"|(?:no|out of|lack of) capacity|RESOURCE_EXHAUSTED",
        "the zone has none free now: add --queued to wait in line, or try --spot or another --zone",
        made_nothing=False,
    ),
    Hint(
        r"accelerator.?type\S*.{0,160}?(?:not |n't |no longer |unknown|invalid|unsupported)"
        r"|(?:invalid|unknown|unsupported|no such) (?:value for )?\W*accelerator"
        r"|acceleratorTypes/\S+.{0,80}not found|not an? (?:\w+ )?(?:accelerator|TPU) type"
        r"|TPU type\S*.{0,80}?(?:not |unknown|unsupported)|(?:unsupported|unknown) TPU type",
        "that zone does not have this type: see what it has with  gcloud compute tpus "
        "accelerator-types list --zone ZONE,  and which zones have which on "
        "cloud.google.com/tpu/docs/regions-zones; then give another --zone or --type",
    ),
    Hint(
        r"runtime.?version\S*.{0,120}?(?:not |unknown|invalid|unsupported)"
        r"|(?:invalid|unknown|unsupported) (?:runtime|software|tensorflow) version",
        "that zone does not have this software: see  gcloud compute tpus tpu-vm versions list "
        "--zone ZONE  and give one with --runtime-version, or leave it out",
    ),
    Hint(
        r"(?:invalid|unknown|unsupported|no such) (?:value for )?(?:\S+ )?\W*"
        r"(?:zone|location|region)"
        r"|\b(?:zone|location|region)s?\b(?:(?!/nodes|/queuedR)[^\n]){0,80}?"
        r"(?:not found|not exist|is not (?:valid|a valid)|is invalid|unknown|not supported"
        r"|is unauthorized)|not an? (?:\w+ )?(?:zone|location)\b|(?:find|fetch) (?:the )?zone\b",
        "Google has no such zone, or no TPUs in it for this project: see  gcloud compute tpus "
        "locations list  and give one with --zone, such as us-east5-b",
    ),
    Hint(
        r"CONSUMER_INVALID|\bprojects?\b(?:(?!/locations)[^\n]){0,80}?"
        r"(?:not found|not exist|deleted)"
        r"|permission denied on resource project|invalid project",
        "no such project, or this account cannot see it: see  gcloud projects list  and give one "
        "with --project",
    ),
    Hint(
        r"start-iap-tunnel|\[4003|\[4033",
        "ssh goes through IAP: allow 35.235.240.0/20 to port 22 in the firewall, enable "
        "iap.googleapis.com and have roles/iap.tunnelResourceAccessor; or use --ssh external",
    ),
    Hint(
        r"PERMISSION_DENIED|does not have permission|permission .{0,80}denied",
        _TPU_ROLE,
    ),
    Hint(
        r"already exists|ALREADY_EXISTS",
        "something of that name is there: see  deploy/wan-tpu-deploy status NAME,  or delete it",
        made_nothing=False,
    ),
    Hint(
        r"(?:attribute|property) \[(?:core/)?project\]",
        "no project: give --project, or run  gcloud config set project PROJECT",
    ),
    Hint(
        r"(?:attribute|property) \[(?:compute/)?zone\]",
        "no zone: give --zone, or run  gcloud config set compute/zone ZONE",
    ),
)
"""What gcloud says, and what to do about it; the first that fits counts."""


def find_hint(error: str) -> Optional[str]:
    """What to do about gcloud's error, or None where we do not know."""
    return next((advice for hint in HINTS if (advice := hint.read(error))), None)


def made_nothing(error: str) -> bool:
    """Whether the error surely came before anything was made."""
    return next((hint.made_nothing for hint in HINTS if hint.read(error)), False)


def explain(error: str) -> str:
    """gcloud's error with what to do about it."""
    hint = find_hint(error)
    return f"{error}\n  -> {hint}" if hint else error
