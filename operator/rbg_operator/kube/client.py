"""Requests to the API server: each has a deadline, each failure is an ApiError, answers are decoded once.

Reads that the server turns away for a moment (429 or 503 with a short Retry-After) are asked again here. Writes are
not: who wrote observes again before it writes again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from rbg_operator.kube.credentials import Credentials
from rbg_operator.kube.decoding import WatchEvent, decode, decode_page
from rbg_operator.kube.errors import ApiError
from rbg_operator.kube.resources import Resource, group_path
from rbg_operator.kube.stream import watch_events
from rbg_operator.kube.transport import OnRequest, Request, Transport, json_body

T = TypeVar("T")

REQUEST_SECONDS = 30.0
WATCH_SECONDS = 300
WATCH_SLACK_SECONDS = 30.0
WATCH_IDLE_SECONDS = 180.0  # bookmarks come each minute; the first of a kind that never changed after two


class _Kind(msgspec.Struct):
    kind: str
    name: str = ""


class _ApiResources(msgspec.Struct):
    resources: list[_Kind] | None = None


class Client:
    """A pool of connections to one API server. Use as `async with`, or call close().

    Objects to send are plain dicts; type_ names the Struct (or dict, or msgspec.Raw) that the answer is decoded into.
    Every method raises ApiError; ValueError for names that cannot stand in a path.
    """

    def __init__(
        self, credentials: Credentials, *, on_request: OnRequest | None = None, request_seconds: float = REQUEST_SECONDS
    ) -> None:
        """To be called with a running event loop."""
        self._transport = Transport(credentials, on_request, request_seconds)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; requests in flight fail."""
        await self._transport.close()

    async def get(self, resource: Resource, namespace: str | None, name: str, type_: type[T]) -> T | None:
        """The object, None if there is none."""
        request = Request(verb="get", plural=resource.plural, path=resource.path(namespace, name))
        body = await self._read_if_there(request)
        return None if body is None else decode(body, type_)

    async def apply(
        self,
        resource: Resource,
        namespace: str | None,
        body: Mapping[str, Any],
        type_: type[T],
        *,
        manager: str,
        force: bool = True,
        subresource: str = "",
    ) -> T:
        """Server-side apply of a whole intent. Without force, fields of other managers are a 409 with their causes."""
        request = Request(
            verb="apply",
            plural=resource.plural,
            method="PATCH",
            path=resource.path(namespace, body["metadata"]["name"], subresource),
            query={"fieldManager": manager, "force": "true" if force else "false"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            data=json_body(body),
        )
        return decode(await self._transport.send(request), type_)

    async def merge_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        patch: Mapping[str, Any],
        type_: type[T],
        *,
        manager: str,
        subresource: str = "",
    ) -> T:
        """JSON merge patch; metadata.resourceVersion or uid in it are preconditions (409)."""
        path = resource.path(namespace, name, subresource)
        return decode(await self._patch(resource, path, "application/merge-patch+json", patch, manager), type_)

    async def json_patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        type_: type[T],
        *,
        manager: str,
        subresource: str = "",
    ) -> T:
        """JSON patch; a failing test operation is a 422."""
        path = resource.path(namespace, name, subresource)
        return decode(await self._patch(resource, path, "application/json-patch+json", operations, manager), type_)

    async def create(
        self, resource: Resource, namespace: str | None, body: Mapping[str, Any], type_: type[T], *, manager: str
    ) -> T:
        """A new object; 409 AlreadyExists if the name is taken."""
        request = Request(
            verb="create",
            plural=resource.plural,
            method="POST",
            path=resource.path(namespace),
            query={"fieldManager": manager},
            headers={"Content-Type": "application/json"},
            data=json_body(body),
        )
        return decode(await self._transport.send(request), type_)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        propagation: str = "Background",
    ) -> bool:
        """Ask for deletion; False if there was nothing. With uid, 409 if the name now belongs to another object."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        request = Request(
            verb="delete",
            plural=resource.plural,
            method="DELETE",
            path=resource.path(namespace, name),
            headers={"Content-Type": "application/json"},
            data=json_body(options),
        )
        try:
            await self._transport.send(request)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def list_pages(
        self,
        resource: Resource,
        namespace: str | None,
        type_: type[T],
        *,
        selector: str = "",
        limit: int = 500,
        metadata_only: bool = False,
    ) -> AsyncGenerator[tuple[list[T], str], None]:
        """All objects of one moment, page by page: (items, the moment's resource version).

        namespace None: of all namespaces. metadata_only: only apiVersion, kind and metadata are sent.
        ApiError.expired: the moment was forgotten between two pages, begin again.
        """
        query = {"limit": str(limit)} | ({"labelSelector": selector} if selector else {})
        path, headers = resource.path(namespace), _accept("PartialObjectMetadataList" if metadata_only else "")
        while True:
            request = Request(verb="list", plural=resource.plural, path=path, query=query, headers=headers)
            items, meta = decode_page(await self._transport.read(request), type_)
            yield items, meta.resource_version
            if not meta.continue_:
                return
            query["continue"] = meta.continue_

    async def watch(
        self,
        resource: Resource,
        namespace: str | None,
        type_: type[T],
        *,
        resource_version: str,
        selector: str = "",
        timeout_seconds: int = WATCH_SECONDS,
        idle_seconds: float = WATCH_IDLE_SECONDS,
        metadata_only: bool = False,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Changes after resource_version, with bookmarks, until the server ends the watch after timeout_seconds.

        ApiError.expired: list again. Any other ApiError, also that nothing came for idle_seconds: watch again.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(timeout_seconds),
        } | ({"labelSelector": selector} if selector else {})
        request = Request(
            verb="watch",
            plural=resource.plural,
            path=resource.path(namespace),
            query=query,
            headers=_accept("PartialObjectMetadata" if metadata_only else ""),
        )
        response = await self._transport.open(request)
        try:
            seconds = timeout_seconds + WATCH_SLACK_SECONDS
            async for event in watch_events(response.content, type_, idle_seconds=idle_seconds, seconds=seconds):
                yield event
        finally:
            response.close()

    async def discover(self, api_version: str) -> frozenset[str]:
        """The kinds that the server serves in a group and version; empty if it does not know the group."""
        body = await self._read_if_there(Request(verb="get", plural="apiresources", path=group_path(api_version)))
        found = [] if body is None else decode(body, _ApiResources).resources or []
        return frozenset(resource.kind for resource in found if "/" not in resource.name)

    async def _read_if_there(self, request: Request) -> bytes | None:
        try:
            return await self._transport.read(request)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _patch(self, resource: Resource, path: str, content_type: str, patch: Any, manager: str) -> bytes:
        request = Request(
            verb="patch",
            plural=resource.plural,
            method="PATCH",
            path=path,
            query={"fieldManager": manager},
            headers={"Content-Type": content_type},
            data=json_body(patch),
        )
        return await self._transport.send(request)


def _accept(kind: str) -> dict[str, str]:
    return {"Accept": f"application/json;as={kind};g=meta.k8s.io;v=v1" if kind else "application/json"}
