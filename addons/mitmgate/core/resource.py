"""What the gateway tells clients of protected resources, so that they find the authorization server (RFC 9728)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"


@dataclass(frozen=True, slots=True)
class Resource:
    """A protected resource that the policy publishes. host: lower-case, without port. document: its metadata, JSON.

    Its metadata is at `metadata_path` of its own host (section 3.1); metadata_url names that whole.
    """

    origin: str
    host: str
    path: str
    document: bytes = field(repr=False)
    metadata_path: str = field(init=False)
    metadata_url: str = field(init=False)

    def __post_init__(self) -> None:
        """Insert the well-known path between host and path; a slash alone is no path."""
        path = WELL_KNOWN + ("" if self.path == "/" else self.path)
        object.__setattr__(self, "metadata_path", path)
        object.__setattr__(self, "metadata_url", f"{self.origin}{path}")


class Resources:
    """The published resources of a policy.

    Which one a request is for follows from its host and path alone: what is said before it is known who asks must not
    depend on the routes that there are. The published paths are public, since everybody may ask for the metadata.
    """

    __slots__ = ("_by_path", "_resources", "paths")

    paths: frozenset[str]
    """Where metadata is, on whatever host."""

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        """Put the most specific first."""
        self._resources = tuple(sorted(resources, key=lambda resource: -len(resource.path)))
        self._by_path = {(resource.host, resource.metadata_path): resource for resource in self._resources}
        self.paths = frozenset(resource.metadata_path for resource in self._resources)

    def metadata(self, host: str, path: str) -> bytes | None:
        """Return the metadata that is at a path of a host."""
        found = self._by_path.get((host, path))
        return None if found is None else found.document

    def at(self, host: str, path: str) -> Resource | None:
        """Return the published resource that a path of a host is of, on boundaries of segments."""
        for resource in self._resources:
            below = resource.path.rstrip("/")
            if resource.host == host and (path in {resource.path, below} or path.startswith(f"{below}/")):
                return resource
        return None

    def challenge(self, text: str, host: str, path: str) -> str:
        """Add to a challenge where the metadata of what was asked for is, as far as that is published (section 5.1)."""
        found = self.at(host, path)
        if found is None:
            return text
        return f'{text}{"," if "=" in text else ""} resource_metadata="{found.metadata_url}"'
