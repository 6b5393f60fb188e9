"""Predictions for practitioners on loopback: Open Inference Protocol v2, and named values for people.

Source: the Open Inference Protocol (KServe v2 REST). Of a request nothing but the number of its records is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from fastapi import Body, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from protocol.dataset import DatasetSchema, NumberLabel
from protocol.errors import CloisterError, Malformed
from site_agent.serving.log import ServingLogUnwritable
from site_agent.serving.predictor import Predictor

MAX_BODY = 8 << 20
MAX_MEDIA_BODY = 64 << 20
LIVE = "/v2/health/live"
_STATUS = {"absent": 404, ServingLogUnwritable.code: 503}


class Tensor(BaseModel):
    """One input tensor of the protocol; only FP64, FP32 and INT64 rows of the model's columns."""

    model_config = ConfigDict(extra="ignore")
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferenceRequest(BaseModel):
    """Body of POST /v2/models/NAME/infer."""

    model_config = ConfigDict(extra="ignore")
    id: str | None = None
    inputs: list[Tensor]


class NamedRequest(BaseModel):
    """Body of POST /v1/predict: records of named raw values."""

    model_config = ConfigDict(extra="forbid")
    records: list[dict[str, Any]]


def create_app(
    predictor: Predictor, trouble: Callable[[], CloisterError | None], predicted: Callable[[int], None]
) -> FastAPI:
    """The loopback application for one installed release. trouble: asked before each answer; what it returns is told
    with status 503 in place of the answer. predicted: told how many records an answer is about before it leaves; where
    it raises ServingLogUnwritable there is no answer, but that error with status 503."""
    app = FastAPI(title="Cloister predictions", docs_url=None, redoc_url=None, openapi_url=None)
    subject = predictor.subject
    name, version = subject.study, subject.release
    given, datatype, shape = predictor.input
    most = MAX_BODY if predictor.schema.media is None else MAX_MEDIA_BODY

    @app.exception_handler(CloisterError)
    async def refuse(_: Request, error: CloisterError) -> JSONResponse:
        return JSONResponse(
            {"error": error.message, "code": error.code, "remedy": error.remedy}, _STATUS.get(error.code, 400)
        )

    @app.exception_handler(RequestValidationError)
    async def unreadable(_: Request, __: RequestValidationError) -> JSONResponse:
        # The framework's own answer repeats what was sent, which is a patient's.
        told = Malformed(
            "The request does not have the form that this address takes.",
            "Send JSON as application/json, a file as application/octet-stream; GET /v2/models/NAME tells the input.",
        )
        return JSONResponse({"error": told.message, "code": told.code, "remedy": told.remedy}, 422)

    @app.middleware("http")
    async def cap(request: Request, call_next: Any) -> Any:
        if int(request.headers.get("content-length") or 0) > most:
            return JSONResponse({"error": "The request is too large.", "remedy": "Send fewer records."}, 413)
        if request.url.path != LIVE and (why := await run_in_threadpool(trouble)) is not None:
            return JSONResponse({"error": why.message, "code": why.code, "remedy": why.remedy}, 503)
        response = await call_next(request)
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get(LIVE)
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get("/v2/models/{model}")
    async def metadata(model: str) -> dict[str, Any]:
        _known(model, name)
        return {
            "name": name,
            "versions": [version],
            "platform": "onnx",
            "inputs": [{"name": given, "datatype": datatype, "shape": [-1, *shape]}],
            "outputs": [{"name": predictor.output, "datatype": "FP64", "shape": [-1, *predictor.output_shape]}],
            "parameters": {
                **_described(predictor.schema),
                "release_digest": subject.digest,
                "intended_use": subject.intended_use,
                "use_mode": subject.use_mode,
            },
        }

    @app.get("/v2/models/{model}/ready")
    async def model_ready(model: str) -> dict[str, Any]:
        _known(model, name)
        return {"name": name, "ready": True}

    @app.post("/v2/models/{model}/infer")
    def infer(model: str, body: InferenceRequest) -> dict[str, Any]:
        _known(model, name)
        rows = _rows(body, given, len(shape) + 1)
        result = predictor.outputs(rows)
        predicted(len(rows))
        reply: dict[str, Any] = {
            "model_name": name,
            "model_version": version,
            "outputs": [
                {
                    "name": predictor.output,
                    "datatype": "FP64",
                    "shape": list(result.shape),
                    "data": result.ravel().tolist(),
                }
            ],
        }
        if body.id is not None:
            reply["id"] = body.id
        return reply

    @app.post("/v1/predict")
    def predict(body: NamedRequest) -> dict[str, Any]:
        told = _told(predictor, body.records)
        predicted(len(body.records))
        return {
            "release": version,
            "release_digest": subject.digest,
            "label": predictor.schema.label.name,
            "use_mode": subject.use_mode,
            **told,
        }

    @app.post("/v1/predict-file")
    def predict_file(data: Annotated[bytes, Body(media_type="application/octet-stream")]) -> dict[str, Any]:
        found, label = predictor.predict_file(data), predictor.schema.label
        told = {"value": found, "unit": label.unit} if isinstance(label, NumberLabel) else {"probability": found}
        predicted(1)
        return {
            "release": version,
            "release_digest": subject.digest,
            "label": label.name,
            "use_mode": subject.use_mode,
            **told,
        }

    return app


def _told(predictor: Predictor, records: list[dict[str, Any]]) -> dict[str, Any]:
    found, label = predictor.predict(records), predictor.schema.label
    return {"values": found, "unit": label.unit} if isinstance(label, NumberLabel) else {"probabilities": found}


def _described(schema: DatasetSchema) -> dict[str, Any]:
    if schema.media is not None:
        return {"input": schema.media.model_dump(mode="json")}
    return {"columns": [feature.model_dump(mode="json") for feature in schema.features]}


def _known(model: str, name: str) -> None:
    if model != name:
        error = Malformed("No such model is installed here.", f"The installed model is {name}.")
        error.code = "absent"
        raise error


def _rows(body: InferenceRequest, name: str, axes: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The one input tensor as float64, of so many axes. Raises Malformed."""
    remedy = f"Send one tensor named {name} with {axes} axes; GET /v2/models/NAME tells its shape."
    if len(body.inputs) != 1 or body.inputs[0].name != name:
        raise Malformed(f"The request does not hold exactly the input named {name}.", remedy)
    tensor = body.inputs[0]
    if tensor.datatype not in {"FP64", "FP32", "INT64"} or len(tensor.shape) != axes or min(tensor.shape) < 1:
        raise Malformed("The input's datatype or shape is not accepted.", remedy)
    try:
        flat = np.array(tensor.data, dtype=np.float64).reshape(-1)
        return flat.reshape(tensor.shape)
    except (ValueError, TypeError) as error:
        raise Malformed("The input's data does not fit its shape.", remedy) from error
