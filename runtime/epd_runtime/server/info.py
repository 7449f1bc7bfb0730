"""What /server_info, /model_info, /v1/models and /v1/loads say. Routers read these fields to register a worker."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from typing import Any

import msgspec

from epd_runtime.server.service import Service

VERSION = importlib.metadata.version("rbg-epd")
SECRETS = frozenset({"api_key", "admin_api_key"})


def server_info(service: Service) -> dict[str, Any]:
    """Flags, state and memory of this server."""
    config, ready = service.config, service.ready
    flags = {name: value for name, value in dataclasses.asdict(config).items() if name not in SECRETS}
    return {
        **flags,
        "served_model_name": config.model_name,
        "disaggregation_mode": config.disaggregation_mode or "null",
        "tp_size": 1,
        "dp_size": 1,
        "version": VERSION,
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
    return {"object": "list", "data": [model_card(service)]}


def model_card(service: Service) -> dict[str, Any]:
    """The model in the shape of the OpenAI API."""
    card: dict[str, Any] = {"id": service.config.model_name, "object": "model", "created": 0, "owned_by": "rbg-epd"}
    if service.ready is not None:
        card["max_model_len"] = service.ready.context_length
    return card


def loads(service: Service) -> dict[str, Any]:
    """What the engine is doing, in the shape of /v1/loads."""
    load = engine_load(service)
    return {"timestamp": time.time(), "version": VERSION, "dp_rank_count": 1, "loads": [load], "aggregate": load}


def engine_load(service: Service) -> dict[str, Any]:
    """Requests and tokens of the engine as of its last step."""
    stats, page_size = service.engine.stats, service.config.page_size
    return {
        "dp_rank": 0,
        "num_reqs": stats.num_running + stats.num_queued,
        "num_running_reqs": stats.num_running,
        "num_waiting_reqs": stats.num_queued,
        "num_tokens": stats.pages_used * page_size,
        "num_used_tokens": stats.pages_used * page_size,
        "max_total_num_tokens": stats.pages_total * page_size,
        "token_usage": stats.pages_used / stats.pages_total if stats.pages_total else 0.0,
        "max_running_requests": service.config.max_running_requests,
    }
