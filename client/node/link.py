"""The site's node as the coordinator sees it: asked and told with the site's own key."""

from __future__ import annotations

from pathlib import Path

from lorica.client.config.site import SiteConfig
from lorica.client.node.joining import site_key
from lorica.common.errors import Code, LoricaError
from lorica.common.wire.invitation import key_fingerprint, parse_address


class NodeLink:
    """Signed requests to the coordinator's fleet interface."""

    def __init__(self, config: SiteConfig, root: Path) -> None:
        """
        Args:
            config: the site's.
            root: the folder that site.toml is in.

        Raises:
            LoricaError: LOR-723 the site is part of no federation, or its key cannot be used.
        """
        if not config.federation.address:
            raise LoricaError(
                Code.FEDERATION_MISSING,
                "federation.address in site.toml is empty: the site is part of no federation.",
                mend="`lorica site init --token …` with the coordinator's invitation.",
            )
        self.host, self.port = parse_address(config.federation.address)
        self.authority = root / config.federation.authority
        self.key_file = root / config.federation.key
        if not self.key_file.exists():
            raise LoricaError(Code.FEDERATION_MISSING, f"There is no key {self.key_file}.")
        self._key = site_key(self.key_file)

    @property
    def address(self) -> str:
        """host:port as Flower takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the site's public key, as ssh-keygen shows it."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = self._key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return key_fingerprint(public.decode())

    def check_admitted(self) -> str:
        """Whether the coordinator knows the site's key; changes nothing there.

        An activation with an impossible interval is refused after the key was looked up, and with
        another error than for a key that nobody registered.

        Raises:
            LoricaError: LOR-728 it does not, LOR-727 it cannot be asked.
        """
        from flwr.proto.fleet_pb2 import ActivateNodeRequest
        from flwr.supercore.error import ApiErrorCode
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._key.public_key()), heartbeat_interval=-1.0
        )
        code = self._error_of("ActivateNode", request)
        if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
            return f"the coordinator knows this site's key, {self.fingerprint}"
        raise LoricaError(
            Code.SITE_UNKNOWN,
            "The coordinator does not know this site's key: the site was not admitted yet, or "
            "was revoked.",
            mend="Send registration.json to the coordinator's operators, who admit it with "
            "`lorica coordinator admit`; after a revocation ask them for a new invitation.",
        )

    def deactivate(self, node: int) -> None:
        """Tell the coordinator that the node is gone, so that its successor is let in at once.

        Without this a node that was killed counts as online for another minute.
        """
        from flwr.proto.fleet_pb2 import DeactivateNodeRequest

        self._error_of("DeactivateNode", DeactivateNodeRequest(node_id=node))

    def _error_of(self, method: str, request: object) -> int:
        """Flower's error code of a request that is sent; 0 for none. Raises LOR-727."""
        import httpx
        from flwr.supercore.error import FlowerError
        from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
        from flwr.supernode.fleet_http_client import FleetHttpClient
        from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(self._key, self._key.public_key()),
        ]
        try:
            with FleetHttpClient.from_server_address(
                self.address, False, str(self.authority), interceptors=interceptors
            ) as client:
                getattr(client, method)(request)
        except httpx.HTTPStatusError as error:
            known = FlowerError.from_json(error.response.text)
            return int(known.code) if known is not None else error.response.status_code
        except (httpx.HTTPError, OSError) as error:
            raise LoricaError(
                Code.COORDINATOR_DOWN, f"The coordinator at {self.address} broke off: {error}."
            ) from error
        return 0
