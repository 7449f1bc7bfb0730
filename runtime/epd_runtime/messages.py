"""Every message between the API process and its engine process: msgpack over a Unix socket.

One Struct per message, tagged with its name. Both directions are ordered and lossless while both processes live
(message_socket.py); when one dies the other ends too (the engine reads EOF on its standard input, the API process reaps
its child).

    API process ──────────────────────────────────────────────▶ engine process
        GenerateRequest | EncodeRequest | AbortRequest | FailRequest | FailRoom | FlushCache
    API process ◀────────────────────────────────────────────── engine process
        EngineReady | EngineFailed   (exactly one of them first)
        StepOutputs | RequestFailed | EncodeDone | CacheFlushed | ImagesWanted
        EngineFailed                 (the last, when one of several ranks is lost)

Every GenerateRequest ends with one TokenOutput that has a finish_reason, or with one RequestFailed, never both;
after an AbortRequest nothing more need come. All times are seconds of time.time().
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One stage of one request, for waterfalls: encode, transfer, prefill, handoff or decode."""

    stage: str
    start: float
    end: float


class Grammar(msgspec.Struct, frozen=True):
    """What an answer must look like: any JSON object, JSON of a schema, a regular expression, or a GBNF grammar."""

    kind: Literal["json", "json_schema", "regex", "ebnf"]
    text: str = ""  # the schema, expression or grammar; empty for "json"

    @property
    def field(self) -> str:
        """Name of the body's field, for errors."""
        return self.kind if self.kind in ("regex", "ebnf") else "response_format"


class SamplingParams(msgspec.Struct, frozen=True):
    """How the next token is chosen. temperature 0 is greedy; top_k 0 keeps all tokens."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0  # of the most likely token's probability, after temperature
    repetition_penalty: float = 1.0  # over prompt and answer; 1 is none
    presence_penalty: float = 0.0  # over the answer
    frequency_penalty: float = 0.0  # over the answer
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, added to its logit)
    min_new_tokens: int = 0  # no end token before
    logprobs: int = -1  # likeliest tokens to report beside each token of the answer; -1: no logprobs at all
    prompt_logprobs_from: int = -1  # first prompt token whose logprob is wanted; -1: none
    grammar: Grammar | None = None


class Bootstrap(msgspec.Struct, frozen=True):
    """Where prefill and decode of one request meet: prefill's bootstrap address and the room number."""

    host: str
    port: int
    room: int


class VideoOptions(msgspec.Struct, frozen=True):
    """How a client wants a video to be read; None: as the model's settings say."""

    fps: float | None = None  # frames to read per second; of a list of frames: how many show a second
    num_frames: int | None = None  # frames to read, instead of fps
    min_frames: int | None = None
    max_frames: int | None = None


class VideoInput(msgspec.Struct, frozen=True):
    """What makes an ImageInput a video."""

    options: VideoOptions
    frames: tuple[int, ...]  # the frames that are read, in order
    is_list: bool  # the data is a list of image files, one per frame, of which all are read
    rate: float  # frames per second that the file shows
    seconds: float  # shown by one patch of frames
    later_offsets: tuple[int, ...] = ()  # first placeholders of its further runs: Qwen3-VL has one per patch of frames


class ImageInput(msgspec.Struct, frozen=True):
    """One image or video of a request, after its header was read."""

    content_hash: str  # sha256 of the file, and of how a video is read, hex
    grid: tuple[int, int, int]  # (t, h, w) in patches after resizing
    offset: int  # index of its first placeholder in input_ids
    num_tokens: int  # placeholders, = rows of its embedding
    data: bytes  # the encoded file, or a msgpack list of frames' files; empty when an encoder delivers the embedding
    video: VideoInput | None = None

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        """Its runs of consecutive placeholders: (index of the first in input_ids, row of the embedding, length)."""
        offsets = (self.offset,) if self.video is None else (self.offset, *self.video.later_offsets)
        length = self.num_tokens // len(offsets)
        return [(offset, index * length, length) for index, offset in enumerate(offsets)]

    @property
    def end(self) -> int:
        """Index behind its last placeholder in input_ids."""
        offset, _, length = self.runs[-1]
        return offset + length


def media_name(images: Sequence[ImageInput], index: int) -> str:
    """What errors call images[index]: "image 0" or "video 0", each kind counted by itself."""
    is_video = images[index].video is not None
    number = sum((image.video is not None) == is_video for image in images[:index])
    return f"{'video' if is_video else 'image'} {number}"


class GenerateRequest(msgspec.Struct, frozen=True, tag=True):
    """Continue a prompt. On a decode worker input_ids, images and positions are empty: prefill sends them."""

    rid: str
    input_ids: list[int]
    sampling: SamplingParams
    images: list[ImageInput] = []
    positions: bytes = b""  # M-RoPE positions, int32 [3, len(input_ids)], C order; empty: 0, 1, 2, …
    position_delta: int = 0  # position of token i beyond the prompt is i + position_delta
    bootstrap: Bootstrap | None = None
    priority: int = 0  # with --schedule-policy priority: higher first
    images_coming: tuple[int, ...] = ()  # images that encoders were asked for already; for others comes ImagesWanted


class EncodeRequest(msgspec.Struct, frozen=True, tag=True):
    """Encode one image and push its embedding to a prefill engine."""

    rid: str  # unique for this delivery; echoed by EncodeDone or RequestFailed
    request_id: str  # the request's id at the receiver
    part_idx: int
    num_parts: int
    image: ImageInput
    receive_url: str  # tcp://host:port of the receiver's PULL socket


class AbortRequest(msgspec.Struct, frozen=True, tag=True):
    """The client left or a stop string matched: free everything the request holds."""

    rid: str


class FailRequest(msgspec.Struct, frozen=True, tag=True):
    """End a request with an error found outside the engine (no encoder answered); its room fails too."""

    rid: str
    status: int
    message: str


class FailRoom(msgspec.Struct, frozen=True, tag=True):
    """A request with a room was refused before it reached the engine; the other leg must hear of it."""

    bootstrap: Bootstrap
    status: int
    message: str


class FlushCache(msgspec.Struct, frozen=True, tag=True):
    """Forget every cached prefix and embedding. Answered by CacheFlushed, or RequestFailed 400 while requests run."""

    rid: str  # echoed by the answer


ToEngine: TypeAlias = GenerateRequest | EncodeRequest | AbortRequest | FailRequest | FailRoom | FlushCache


class EngineStats(msgspec.Struct, frozen=True):
    """Gauges of the engine after a step."""

    num_running: int = 0
    num_queued: int = 0
    pages_total: int = 0
    pages_used: int = 0  # by requests
    pages_cached: int = 0  # used by nobody, kept for prompts that begin alike
    pages_evicted: int = 0  # cached pages given to requests since the start
    prefix_tokens: int = 0  # prompt tokens looked up in the prefix cache since the start
    prefix_hit_tokens: int = 0  # those of them that were found
    retractions: int = 0  # requests that gave up their pages for older ones, since the start
    rooms: int = 0  # rooms of the handoff not ended
    rooms_done: int = 0  # those that ended with everything handed over, since the start
    rooms_failed: int = 0  # and those that ended otherwise
    handoff_pages: int = 0  # held for a handoff under way: by prefill until decode has them, by decode until they came
    handoff_bytes: int = 0  # of KV handed over since the start
    embeddings_pending: int = 0  # images whose embedding has not arrived
    encoder_cache_bytes: int = 0


class EngineReady(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded and the engine takes requests."""

    context_length: int
    embedding_port: int  # PULL socket for embeddings, 0 when this engine receives none
    bootstrap_port: int  # 0 unless prefill
    weight_bytes: dict[str, int]  # {"vision": n, "language": m}, bytes allocated
    kv_bytes: int
    stats: EngineStats


class EngineFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot start, or go on; the message tells the user why."""

    message: str


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities as the model gave them: before penalties, temperature and cuts."""

    logprob: float  # of the token that came
    top: list[tuple[int, float]]  # the likeliest tokens, likeliest first


class TokenOutput(msgspec.Struct, frozen=True):
    """New tokens of one request in this step."""

    rid: str
    token_ids: list[int]
    finish_reason: str | None = None  # "stop", "length" or "abort"
    matched_stop: int | None = None  # the stop token id that ended it
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    spans: list[Span] = []  # complete with the finish_reason
    logprobs: list[TokenLogprobs] = []  # one per token of token_ids, when asked for
    prompt_logprobs: list[TokenLogprobs | None] = []  # from prompt_logprobs_from on, once; None for the first token


class StepOutputs(msgspec.Struct, frozen=True, tag=True):
    """Everything one engine step produced; an empty list only refreshes the gauges."""

    outputs: list[TokenOutput]
    stats: EngineStats


class RequestFailed(msgspec.Struct, frozen=True, tag=True):
    """A request or encode ended with an error. status is the HTTP status the client shall see."""

    rid: str
    status: int
    message: str


class EncodeDone(msgspec.Struct, frozen=True, tag=True):
    """The embedding was handed to the network."""

    rid: str
    num_rows: int
    hidden: int
    spans: list[Span]
    stats: EngineStats


class CacheFlushed(msgspec.Struct, frozen=True, tag=True):
    """Answer to FlushCache: nothing is cached any more."""

    rid: str
    stats: EngineStats


class ImagesWanted(msgspec.Struct, frozen=True, tag=True):
    """A request cannot go on without the embeddings of these images, which no encoder was asked for yet."""

    rid: str
    images: list[int]  # indices into the request's images


FromEngine: TypeAlias = (
    EngineReady | EngineFailed | StepOutputs | RequestFailed | EncodeDone | CacheFlushed | ImagesWanted
)

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
