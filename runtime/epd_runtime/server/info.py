"""What /server_info, /model_info and /v1/models say. Routers read these fields to register a worker."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import msgspec

from epd_runtime.server.service import Service


def server_info(service: Service) -> dict[str, Any]:
    """Flags, state and memory of this server."""
    config, ready = service.config, service.ready
    return {
        **dataclasses.asdict(config),
        "served_model_name": config.model_name,
        "disaggregation_mode": config.disaggregation_mode or "null",
        "tp_size": 1,
        "dp_size": 1,
        "version": importlib.metadata.version("rbg-epd"),
        "role": config.role.value,
        "status": service.status.value,
        "num_open_requests": service.num_open,
        "num_engine_requests": service.engine.num_open,
        "encoder_outstanding_patches": service.encoders.outstanding if service.encoders is not None else {},
        "engine": None if ready is None else {**msgspec.to_builtins(ready), "stats": service.engine.stats},
    }


def model_info(service: Service) -> dict[str, Any]:
    """The model of this server."""
    model = service.model
    return {
        "model_path": service.config.model_path,
        "tokenizer_path": service.config.model_path,
        "served_model_name": service.config.model_name,
        "model_type": model.config.model_type,
        "architectures": list(model.architectures),
        "is_generation": service.config.has_language_model,
        "has_image_understanding": model.resize is not None,
        "max_context_length": service.ready.context_length if service.ready is not None else None,
        "vocab_size": model.config.text.vocab_size,
    }


def model_list(service: Service) -> dict[str, Any]:
    """Models in the shape of the OpenAI API."""
    card: dict[str, Any] = {"id": service.config.model_name, "object": "model", "created": 0, "owned_by": "rbg-epd"}
    if service.ready is not None:
        card["max_model_len"] = service.ready.context_length
    return {"object": "list", "data": [card]}
