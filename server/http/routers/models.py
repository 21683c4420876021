"""`/v1/models`: what is served, its defaults and limits."""

import asyncio

from fastapi import APIRouter

from server.http.answers import errors
from server.http.dependencies import ModelsDependency, ServiceDependency
from server.http.model_object import model_object
from server.http.schemas import Model, ModelList

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", operation_id="listModels")
async def list_models(service: ServiceDependency, models: ModelsDependency) -> ModelList:
    """Lists the models with their defaults, limits, adapters and presets."""
    data = [
        await asyncio.to_thread(model_object, model, service.started_at) for model in models.all()
    ]
    return ModelList(object="list", data=data)


@router.get("/{model_id:path}", operation_id="retrieveModel", responses=errors(404))
async def retrieve_model(
    model_id: str, service: ServiceDependency, models: ModelsDependency
) -> Model:
    """Shows a model; the slash in an id like `owner/name` may be written as it is."""
    model = models.find(model_id, "model_id")
    return await asyncio.to_thread(model_object, model, service.started_at)
