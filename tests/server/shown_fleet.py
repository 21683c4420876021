"""A server that shows slices and models as a file says; its jobs are made by its own engine.

What the fleet's own server shows comes from slices that run; how a page or a command shows it needs
states that they are in for a moment only. Run by `RunningFleet`.
"""

import json
import os
import pathlib
import sys
import time

from server.http.app import make_app
from server.http.listening import listen
from server.http.serving import serve
from server.logs import start_logging
from server.service import open_service
from server.settings import Settings
from server.signals import Told
from server.slices import FleetModel, ShownSlice
from server.systemd import Notifier
from tests.server.running import SCRIPTED, RunningServer
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.geometry import parse_size

FILE = "SHOWN_FLEET"


class RunningFleet(RunningServer):
    """One such server, with the scripted engine; by default no slice is there."""

    module = "tests.server.shown_fleet"

    def __init__(self, data_dir, **settings):
        self.file = data_dir.with_name(f"{data_dir.name}.json")
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        self.show()
        environment = {FILE: str(self.file)}
        super().__init__(data_dir, environment=environment, engine=SCRIPTED, **settings)

    def show(self, *slices, models=None):
        """Says what is there from now on.

        Args:
            slices: of each (name, model, state), and perhaps words.
            models: with the sizes that each compiles; None for those of the slices.
        """
        known = {name: [] for _, name, *_ in slices} if models is None else models
        data = {"slices": slices, "models": known, "since": time.time() - 300}
        aside = self.file.with_suffix(".new")
        aside.write_text(json.dumps(data))
        aside.replace(self.file)


class SlicesOfFile:
    """See `server.slices.Slices`."""

    def __init__(self, file):
        self.file = file
        self.known = {}

    def read(self):
        return json.loads(self.file.read_text())

    def models(self):
        for name, sizes in self.read()["models"].items():
            warm = tuple((*parse_size(size), 17) for size in sizes)
            if name not in self.known or self.known[name].warm != warm:
                self.known[name] = FleetModel(description=describe_model(name), warm=warm)
        return {name: self.known[name] for name in self.read()["models"]}

    def shown(self):
        data = self.read()
        return [
            ShownSlice(
                name=name,
                model=model,
                state=state,
                words=" ".join(words),
                since=data["since"],
                layout=None if state == "loading" else "sp=4 ring",
            )
            for name, model, state, *words in data["slices"]
        ]


def main():
    settings, told = Settings(), Told()
    told.listen()
    start_logging(settings.log_level, settings.group)
    listening = listen(settings)
    service = open_service(settings)
    service.slices = SlicesOfFile(pathlib.Path(os.environ[FILE]))
    return 0 if serve(service, make_app(service), listening, told, Notifier()) else 1


if __name__ == "__main__":
    sys.exit(main())
