"""The models that requests may name: that of this server, or those of a fleet's slices."""

from collections.abc import Callable, Mapping

from server.errors import ApiError, retry_after, shown
from server.http.served_model import ServedModel, serve
from server.settings import Settings
from server.slices import FleetModel, Slices

MODELS_RETRY_SECONDS = 30.0
"""When to come again to a fleet that has no slice."""


class ServedModels:
    """Models by the names that clients use."""

    def __init__(self, settings: Settings, look: Callable[[], Mapping[str, ServedModel]]):
        """Looks at nothing yet.

        Args:
            settings: with the bounds that hold for all of them.
            look: at the models that are served now, by id.
        """
        self._look = look
        self.max_upload_bytes = settings.max_upload_bytes
        self._preferred = settings.served_model_name or settings.model

    @property
    def max_text_bytes(self) -> int:
        """Of a field of a form that is no file: a picture in base64, with what is before it."""
        return -(-self.max_upload_bytes * 4 // 3) + 200

    @property
    def take_files(self) -> bool:
        """Whether some model is made from pictures or clips."""
        return any(model.description.kind.takes for model in self.all())

    def all(self) -> list[ServedModel]:
        """Those that are served now, by id."""
        return [model for _, model in sorted(self._look().items())]

    def has(self, name: str) -> bool:
        """Whether a model is called so."""
        return name in self._look()

    def find(self, name: str | None, param: str = "model") -> ServedModel:
        """The model that a request names; None is the only one, or else the one of the settings.

        Args:
            name: as the client wrote it.
            param: the field that it came in.

        Raises:
            ApiError: there is none of that name, several and no name, or none at all.
        """
        models = self._look()
        if not models:
            message = "no slice serves a model now; come again when one has started"
            later = retry_after(MODELS_RETRY_SECONDS)
            raise ApiError(503, "no_model", message, headers=later)
        known = ", ".join(sorted(models))
        if name is None:
            only = next(iter(models.values())) if len(models) == 1 else None
            found = only or models.get(self._preferred)
            if found is None:
                message = f"model is needed, since several are served: {known}"
                raise ApiError(400, "missing_field", message, param=param)
            return found
        if name not in models:
            message = f"there is no model {shown(name)} here; known: {known}"
            raise ApiError(404, "model_not_found", message, param=param)
        return models[name]


def one_model(settings: Settings, model: ServedModel) -> ServedModels:
    """The model of a server that has its own slice."""
    return ServedModels(settings, lambda: {model.id: model})


def fleet_models(settings: Settings, slices: Slices) -> ServedModels:
    """The models that the slices of a fleet serve, as they come and go."""
    served: dict[str, tuple[FleetModel, ServedModel]] = {}

    def look() -> Mapping[str, ServedModel]:
        found = slices.models()
        for name, model in found.items():
            if name not in served or served[name][0] is not model:
                served[name] = (model, serve(settings, name, model.description, model.warm))
        return {name: served[name][1] for name in found}

    return ServedModels(settings, look)
