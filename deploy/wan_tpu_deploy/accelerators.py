"""Accelerator types: workers, runtime version and list price of each.

Sources, as read in November 2026:

* Types, chips of a worker: Google Cloud pages "TPU v6e", "TPU v5e", "TPU v5p". TPU7x is left out:
  Google offers it through Compute Engine and Kubernetes, not through `gcloud compute tpus`.
* Disks: Google Cloud page "Attach durable block storage to a TPU VM"; a disk that is written is
  attached to one machine.
* Runtime versions: Google Cloud page "TPU software versions" (cloud.google.com/tpu/docs/runtimes).
* Prices: cloud.google.com/tpu/pricing as copied into SkyPilot's catalogue (pull request 4218,
  October 2024: v6e by region) and dstack's gpuhunt (tpu_pricing.json, December 2024: v5e and v5p).
"""

import dataclasses
from typing import Optional

from wan_tpu_deploy.errors import DeployError

PRICES_AS_OF = "December 2024"


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of chips.

    Attributes:
        name: as accelerator types of `wan-tpu plan` write it.
        prefix: as gcloud's accelerator types write it.
        runtime_version: the software that the VM starts with.
        chips: sizes of the slices.
        cores_per_chip: what the number in the accelerator type counts for a chip.
        chips_of_lone_worker: slices of up to so many chips are one worker; else a worker has 4.
        disk_type: of a data disk: newer machines take hyperdisks alone.
        prices: dollars per chip and hour on demand by region; "" is any other region.
        spot_price: the same for spot capacity in the cheapest region; it changes monthly.
    """

    name: str
    prefix: str
    runtime_version: str
    chips: tuple[int, ...]
    cores_per_chip: int
    chips_of_lone_worker: int
    disk_type: str
    prices: dict[str, float]
    spot_price: Optional[float]


GENERATIONS = (
    Generation(
        name="v6e",
        prefix="v6e",
        runtime_version="v2-alpha-tpuv6e",
        chips=(1, 4, 8, 16, 32, 64, 128, 256),
        cores_per_chip=1,
        chips_of_lone_worker=8,
        disk_type="hyperdisk-balanced",
        prices={"": 2.70, "europe-west4": 2.97, "asia-northeast1": 3.24},
        spot_price=None,
    ),
    Generation(
        name="v5e",
        prefix="v5litepod",
        runtime_version="v2-alpha-tpuv5-lite",
        chips=(1, 4, 8, 16, 32, 64, 128, 256),
        cores_per_chip=1,
        chips_of_lone_worker=8,
        disk_type="pd-balanced",
        prices={"": 1.20, "europe-west1": 1.32, "europe-west4": 1.56, "asia-southeast1": 1.56},
        spot_price=0.60,
    ),
    Generation(
        name="v5p",
        prefix="v5p",
        runtime_version="v2-alpha-tpuv5",
        chips=(4, 8, 16, 32, 64, 128, 256),
        cores_per_chip=2,
        chips_of_lone_worker=4,
        disk_type="pd-balanced",
        prices={"": 4.20},
        spot_price=2.10,
    ),
)


@dataclasses.dataclass(frozen=True)
class AcceleratorType:
    """A slice that can be asked for.

    Attributes:
        name: as gcloud writes it, for example `v6e-16`.
        generation: what it is made of.
        num_chips: chips of the slice.
    """

    name: str
    generation: Generation
    num_chips: int

    @property
    def num_workers(self) -> int:
        """Machines, each with its own ssh and its own unit."""
        return 1 if self.num_chips <= self.generation.chips_of_lone_worker else self.num_chips // 4

    def price(self, zone: str) -> float:
        """Dollars per hour on demand, list price."""
        prices = self.generation.prices
        return self.num_chips * prices.get(zone.rpartition("-")[0], prices[""])

    def describe_price(self, zone: str, *, spot: bool) -> str:
        """One line for people: dollars per hour, how sure, from when."""
        on_demand = self.price(zone)
        text = f"about ${on_demand:,.2f} an hour (${on_demand * 24:,.0f} a day) on demand"
        if spot:
            cheaper = self.generation.spot_price
            amount = f"from ${cheaper * self.num_chips:,.2f} an hour" if cheaper else "less"
            text = f"{text}, {amount} as spot"
        return f"{text} (list prices of {PRICES_AS_OF}; yours may differ)"


def accelerator_types() -> list[AcceleratorType]:
    """Everything that `find_type` takes."""
    return [
        AcceleratorType(f"{made_of.prefix}-{chips * made_of.cores_per_chip}", made_of, chips)
        for made_of in GENERATIONS
        for chips in made_of.chips
    ]


def find_type(name: str) -> AcceleratorType:
    """The accelerator type of that name; `v5e-16` is gcloud's `v5litepod-16`.

    Raises:
        DeployError: there is none; names those that there are.
    """
    wanted = name.strip().lower()
    if wanted.startswith("v5e-"):
        wanted = wanted.replace("v5e", "v5litepod", 1)
    known = {kind.name: kind for kind in accelerator_types()}
    if wanted not in known:
        raise DeployError(f"unknown accelerator type {name!r}; there are {', '.join(known)}")
    return known[wanted]
