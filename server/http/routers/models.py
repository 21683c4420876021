"""`/v1/models`: what is served, its defaults and limits."""

import asyncio

from fastapi import APIRouter

from server.errors import ApiError
from server.http.answers import errors
from server.http.dependencies import ModelDependency, ServiceDependency
from server.http.model_object import model_object
from server.http.schemas import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", operation_id="listModels")
async def list_models(service: ServiceDependency, model: ModelDependency) -> ModelList:
    """Lists the models with their defaults, limits, adapters and presets."""
    return ModelList(
        object="list", data=[await asyncio.to_thread(model_object, model, service.started_at)]
    )


@router.get("/{model_id:path}", operation_id="retrieveModel", responses=errors(404))
async def retrieve_model(
    model_id: str, service: ServiceDependency, model: ModelDependency
) -> Model:
    """Shows a model; the slash in an id like `owner/name` may be written as it is."""
    if model_id != model.id:
        message = f"there is no model {model_id[:80]!r} here; known: {model.id}"
        raise ApiError(404, "model_not_found", message, param="model_id")
    return await asyncio.to_thread(model_object, model, service.started_at)
