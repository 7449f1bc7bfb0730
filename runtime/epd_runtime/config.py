"""The one configuration object of a server process, and the command line generated from its fields.

Every flag is a field of `ServerConfig`; its name with dashes is the flag, its metadata the help text. The object is
frozen, built once, validated here and nowhere else. Names and defaults follow the reference system's command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from epd_runtime.net.address import bind_address, split_address


class Role(enum.StrEnum):
    """What a server process does; decided by its flags."""

    COLOCATED = "colocated"  # encoder, prefill and decode in one engine
    ENCODER = "encoder"  # --encoder-only
    LANGUAGE = "language"  # --language-only: prefill and decode, images from encoders
    PREFILL = "prefill"  # --disaggregation-mode prefill
    DECODE = "decode"  # --disaggregation-mode decode


POSITIVE = (
    "port", "disaggregation_bootstrap_port", "page_size", "max_running_requests", "max_queued_requests",
    "chunked_prefill_size", "encoder_max_batch_size", "context_length", "max_total_tokens", "num_threads",
    "media_url_max_file_size_mb", "max_image_pixels", "cuda_graph_max_bs", "tp_size", "nnodes", "dist_timeout",
    "max_video_frames",
)  # fmt: skip


ATTENTION_BACKENDS = ("reference", "native", "triton", "flashinfer")


class ConfigError(ValueError):
    """The flags contradict each other; the message says which and what to do."""


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A field of the configuration that is also a command-line flag."""
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Flags of `python -m epd_runtime.launch_server`. Sizes in tokens unless the name says otherwise."""

    model_path: str = flag("", "Folder of the model in Hugging Face layout.", required=True)
    served_model_name: str | None = flag(None, "Name in /v1/models and answers; default: the value of --model-path.")
    host: str | None = flag(None, "Address to listen on; default: the pod's own address, else 127.0.0.1.")
    port: int = flag(30000, "Port to listen on.")
    log_level: str = flag("info", "Log level.", choices=("debug", "info", "warning", "error"))

    encoder_only: bool = flag(False, "Run only the vision encoder; serves POST /encode.")
    language_only: bool = flag(False, "Run no vision encoder; images go to --encoder-urls.")
    encoder_urls: tuple[str, ...] = flag(
        (), "Encoder servers; a host name stands for all its addresses, always current."
    )
    encoder_transfer_backend: str = flag(
        "zmq_to_scheduler", "How embeddings travel from encoder to prefill.", choices=("zmq_to_scheduler",)
    )
    encoder_max_batch_size: int = flag(8, "Images in one forward pass of the encoder.")

    disaggregation_mode: str | None = flag(None, "Run one half of prefill/decode.", choices=("prefill", "decode"))
    disaggregation_transfer_backend: str = flag("tcp", "How KV moves from prefill to decode.", choices=("tcp", "shm"))
    disaggregation_bootstrap_port: int = flag(8998, "Port on which prefill meets decode workers.")

    tool_call_parser: str | None = flag(
        None, "How tool calls stand in answers; default: as the model's family writes them.",
        choices=("hermes", "qwen25", "llama3", "none"),
    )  # fmt: skip
    reasoning_parser: str | None = flag(
        None, "Split <think>…</think> off answers; deepseek-r1: they begin inside.", choices=("qwen3", "deepseek-r1")
    )
    api_key: str | None = flag(None, "Key that clients must send as a bearer token; health and metrics stay open.")
    admin_api_key: str | None = flag(None, "Key for /flush_cache and /abort_request; default: --api-key.")

    tp_size: int = flag(
        1, "Ranks that share the language model (tensor parallelism), over all nodes together.",
        aliases=("--tp", "--tensor-parallel-size"),
    )  # fmt: skip
    nnodes: int = flag(1, "Nodes that the ranks are spread over, equally.")
    node_rank: int = flag(0, "Which of the nodes this is; node 0 serves requests, the others only /health.")
    dist_init_addr: str | None = flag(None, "HOST:PORT on node 0 where the ranks of all nodes meet.")
    dist_timeout: int = flag(600, "Seconds until every rank must have come, and until all must have loaded.")

    dtype: str = flag("auto", "Data type of weights and KV.", choices=("auto", "float32", "bfloat16", "float16"))
    device: str = flag("auto", "Where the model runs.", choices=("auto", "cpu", "cuda"))
    load_format: str = flag("auto", "auto reads safetensors; dummy draws random weights.", choices=("auto", "dummy"))
    random_seed: int = flag(0, "Seed for dummy weights and for requests without a seed of their own.")
    num_threads: int | None = flag(None, "CPU threads of the engine; default: all cores it may use.")
    context_length: int | None = flag(None, "Longest prompt plus answer; default: the model's own.")
    max_total_tokens: int | None = flag(None, "Tokens of KV cache; default: from free memory.")
    page_size: int = flag(16, "Tokens of one KV page.")
    mem_fraction_static: float | None = flag(
        None,
        "Share of the device's memory for weights and KV (CPU: of the free memory for KV); default: 0.85, CPU 0.2.",
    )
    disable_radix_cache: bool = flag(False, "Keep no KV of earlier prompts and answers for prompts that begin alike.")
    schedule_policy: str = flag(
        "fcfs",
        "Who goes first: by arrival, or by the request's priority (one level is worth 30 s of waiting).",
        choices=("fcfs", "priority"),
    )
    max_running_requests: int = flag(64, "Requests in one batch.")
    max_queued_requests: int = flag(512, "Requests waiting beyond those; more are refused with 503.")
    chunked_prefill_size: int = flag(4096, "Prompt tokens computed in one step, beside the running answers.")

    attention_backend: str | None = flag(
        None, "Attention of the language model; default: triton on CUDA, else native (C).", choices=ATTENTION_BACKENDS
    )
    prefill_attention_backend: str | None = flag(
        None, "Attention of prefill chunks; default: as --attention-backend.", choices=ATTENTION_BACKENDS
    )
    decode_attention_backend: str | None = flag(
        None, "Attention of decode steps; default: as --attention-backend.", choices=ATTENTION_BACKENDS
    )
    disable_cuda_graph: bool = flag(False, "Launch decode steps and vision towers kernel by kernel on CUDA.")
    cuda_graph_max_bs: int | None = flag(
        None, "Largest batch whose decode step is a CUDA graph; default: --max-running-requests."
    )
    encoder_cuda_graph_max_tokens: int = flag(
        1024, "Largest batch of images, in tokens of the prompt, whose vision tower is a CUDA graph; 0: none."
    )

    disable_overlap_schedule: bool = flag(False, "Wait for each step before the next is prepared on CUDA.")

    limit_images_per_request: int = flag(64, "Images in one request.")
    limit_videos_per_request: int = flag(4, "Videos in one request.")
    max_video_frames: int = flag(768, "Frames read of one video; the model's own limit may be lower.")
    max_video_seconds: float = flag(600.0, "Longest video file, in seconds; all of it up to the last frame is decoded.")
    media_url_max_file_size_mb: int = flag(64, "Largest image or video file, and all frames of a video, in MiB.")
    media_url_timeout: float = flag(10.0, "Seconds to fetch an image or video from its URL.")
    max_image_pixels: int = flag(
        64 * 1024 * 1024, "Largest image or frame, in pixels; a guard against decompression bombs."
    )
    allowed_media_domains: tuple[str, ...] = flag(
        (),
        "Hosts that image and video URLs may name; when given, no others, and private addresses are allowed for them.",
    )

    @property
    def role(self) -> Role:
        """The stage that these flags describe."""
        if self.encoder_only:
            return Role.ENCODER
        if self.disaggregation_mode is not None:
            return Role(self.disaggregation_mode)
        return Role.LANGUAGE if self.language_only else Role.COLOCATED

    @property
    def bind_host(self) -> str:
        """Address that the HTTP server, the bootstrap and the receivers listen on."""
        return bind_address(self.host)

    @property
    def model_name(self) -> str:
        """Name under which the model is served."""
        return self.served_model_name or self.model_path

    @property
    def ranks_per_node(self) -> int:
        """Ranks of the language model on each node."""
        return self.tp_size // self.nnodes

    @property
    def has_vision_tower(self) -> bool:
        """Whether this process loads the vision tower."""
        return not self.language_only and self.role is not Role.DECODE

    @property
    def has_language_model(self) -> bool:
        """Whether this process loads the language model."""
        return not self.encoder_only

    def validate(self) -> ServerConfig:
        """Return self, or raise ConfigError naming the flags that contradict each other."""
        if self.encoder_only and (self.language_only or self.disaggregation_mode or self.encoder_urls):
            raise ConfigError(
                "--encoder-only excludes --language-only, --encoder-urls and --disaggregation-mode: "
                "an encoder serves images and nothing else"
            )
        if self.disaggregation_mode == "decode" and (self.language_only or self.encoder_urls):
            raise ConfigError(
                "--disaggregation-mode decode takes no --language-only or --encoder-urls: it sees no images"
            )
        if self.language_only and not self.encoder_urls:
            raise ConfigError(
                "--language-only needs --encoder-urls http://HOST:PORT [...]: the servers that encode images"
            )
        if self.encoder_urls and not self.language_only:
            raise ConfigError("--encoder-urls needs --language-only: without it this server encodes images itself")
        self._validate_numbers()
        self._validate_ranks()
        return self

    def _validate_numbers(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{_flag_name(name)} must be at least 1, not {value}")
        if self.context_length == 1:
            raise ConfigError("--context-length must be at least 2: a token of the prompt and one of the answer")
        if not 0 < self.media_url_timeout < float("inf"):
            raise ConfigError(f"--media-url-timeout must be a number of seconds above 0, not {self.media_url_timeout}")
        if self.mem_fraction_static is not None and not 0 < self.mem_fraction_static < 1:
            raise ConfigError(f"--mem-fraction-static must be a share between 0 and 1, not {self.mem_fraction_static}")
        if not 0 < self.max_video_seconds < float("inf"):
            raise ConfigError(f"--max-video-seconds must be a number of seconds above 0, not {self.max_video_seconds}")
        for name in ("limit_images_per_request", "limit_videos_per_request"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{_flag_name(name)} must be at least 0, not {getattr(self, name)}")
        if self.port > 65535 or self.disaggregation_bootstrap_port > 65535:
            raise ConfigError("--port and --disaggregation-bootstrap-port must be between 1 and 65535")
        if self.role is Role.PREFILL and self.port == self.disaggregation_bootstrap_port:
            raise ConfigError(f"--port and --disaggregation-bootstrap-port are both {self.port}; they must differ")

    def _validate_ranks(self) -> None:
        if self.tp_size > 1 and self.encoder_only:
            raise ConfigError("--encoder-only excludes --tp-size: a vision tower is not divided; run more encoders")
        if self.tp_size > 1 and self.disaggregation_mode is not None:
            raise ConfigError(
                "--disaggregation-mode excludes --tp-size: ranks do not hand KV over yet; serve prefill and decode "
                "together, with --language-only where encoders are apart"
            )
        if self.tp_size % self.nnodes:
            raise ConfigError(f"--tp-size {self.tp_size} cannot be spread equally over --nnodes {self.nnodes}")
        if not 0 <= self.node_rank < self.nnodes:
            raise ConfigError(
                f"--node-rank {self.node_rank} is none of the nodes 0 to {self.nnodes - 1} of --nnodes {self.nnodes}"
            )
        if self.nnodes > 1 and self.dist_init_addr is None:
            raise ConfigError("--nnodes needs --dist-init-addr HOST:PORT: where the ranks meet, on node 0")
        if self.dist_init_addr is not None:
            try:
                split_address(self.dist_init_addr)
            except ValueError as error:
                raise ConfigError(f"--dist-init-addr {error}") from None


def _flag_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def _argument(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """argparse keywords of one field, from its type and metadata."""
    metadata = dict(field.metadata)
    required = metadata.pop("required", False)
    metadata.pop("aliases", None)
    keywords: dict[str, Any] = {"dest": field.name, **metadata}
    if required:
        return {**keywords, "required": True}
    keywords["default"] = field.default
    if hint is bool:
        return {**keywords, "action": "store_true"}
    if typing.get_origin(hint) is tuple:
        return {**keywords, "nargs": "*", "type": str}
    if typing.get_origin(hint) is types.UnionType:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return {**keywords, "type": hint}


def build_parser() -> argparse.ArgumentParser:
    """The command line, one flag per field of ServerConfig."""
    parser = argparse.ArgumentParser(
        prog="epd_runtime.launch_server",
        description="Serve a model: all stages in one process, or one of encoder, prefill, decode.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(ServerConfig)
    for field in dataclasses.fields(ServerConfig):
        aliases = field.metadata.get("aliases", ())
        parser.add_argument(_flag_name(field.name), *aliases, **_argument(field, hints[field.name]))
    return parser


def from_values(values: Mapping[str, Any]) -> ServerConfig:
    """A configuration that went through JSON, which turned its tuples into lists."""
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return ServerConfig(**given)


def from_argv(argv: Sequence[str] | None = None) -> ServerConfig:
    """Parse and validate a command line; on a mistake print it and exit with status 2."""
    parser = build_parser()
    values = vars(parser.parse_args(argv))
    for name, value in values.items():
        if isinstance(value, list):  # one argument may hold several values: "$(ENCODER_URLS)" expands to one word
            values[name] = tuple(word for item in value for word in item.split())
    try:
        return ServerConfig(**values).validate()
    except ConfigError as error:
        parser.error(str(error))
