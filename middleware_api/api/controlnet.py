"""What the WebUI's ControlNet extension tells of itself (`/controlnet`), so that its clients find
the models and preprocessors that units may name here."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import ConfigDict

from middleware_api.api.body import StrictRoute
from middleware_api.api.common import errors
from middleware_api.api.wire import Answer
from middleware_api.contract import CONTROL_UNITS_MAX, CheckpointType
from middleware_api.preprocessors import PREPROCESSORS, Preprocessor
from middleware_api.services.webui_api import WebUiService

_API_VERSION = 3  # the extension's since 2024


class ControlNetVersion(Answer):
    """The version of the extension's API that units follow."""

    version: int


class ControlNetModels(Answer):
    """Active ControlNets, `name [hash]`; newest first."""

    model_config = ConfigDict(protected_namespaces=())

    model_list: list[str]


class ControlNetSlider(Answer):
    """A number that a preprocessor takes: its resolution, `threshold_a` or `threshold_b`."""

    name: str
    value: float
    min: float
    max: float


class ControlNetModule(Answer):
    """A preprocessor; `model_free` are those that need no ControlNet."""

    model_config = ConfigDict(protected_namespaces=())

    model_free: bool = False
    sliders: list[ControlNetSlider]


class ControlNetModules(Answer):
    """Preprocessors by the names for `module`."""

    module_list: list[str]
    module_detail: dict[str, ControlNetModule]


class ControlNetSettings(Answer):
    """How many units a request may have."""

    control_net_unit_count: int


def controlnet_router(service: WebUiService) -> APIRouter:
    """The routes over the service that has the WebUI's own."""
    router = APIRouter(route_class=StrictRoute, tags=["webui"], prefix="/controlnet")

    @router.get("/version", responses=errors())
    async def webui_controlnet_version() -> ControlNetVersion:
        """The version of the ControlNet extension's API."""
        return ControlNetVersion(version=_API_VERSION)

    @router.get("/model_list", responses=errors())
    async def webui_controlnet_models() -> ControlNetModels:
        """ControlNets."""
        files = service.models.files(CheckpointType.CONTROLNET)
        return ControlNetModels(model_list=[file.short_title for file in files])

    @router.get("/module_list", responses=errors())
    async def webui_controlnet_modules(alias_names: bool = False) -> ControlNetModules:
        """Preprocessors of the diffusers engine."""
        named = {(each.title if alias_names else each.name): each for each in PREPROCESSORS}
        return ControlNetModules(
            module_list=[*named],
            module_detail={name: _module(each) for name, each in named.items()},
        )

    @router.get("/settings", responses=errors())
    async def webui_controlnet_settings() -> ControlNetSettings:
        """How many units a request may have."""
        return ControlNetSettings(control_net_unit_count=CONTROL_UNITS_MAX)

    return router


def _module(preprocessor: Preprocessor) -> ControlNetModule:
    sliders = (preprocessor.resolution, preprocessor.first, preprocessor.second)
    return ControlNetModule(
        sliders=[
            ControlNetSlider(name=each.title, value=each.value, min=each.low, max=each.high)
            for each in sliders
            if each.title
        ]
    )
