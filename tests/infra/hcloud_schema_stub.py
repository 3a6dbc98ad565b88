"""A stand-in for Terraform's hcloud provider that knows its schema, and nothing else.

`terraform validate` and `terraform test` with `mock_provider` only ask a provider for its schemas
and whether a configuration is valid. So this checks names, types and what is required, against
the schema of provider v1.68.0 as it was transcribed (contracts/terraform.md, section 8). It is
not the provider: the provider's own checks of labels, addresses and the token do not run, and
nothing is ever planned or applied.

Runs in an environment of its own, with the PyPI package `tf` (see `terraform.py`).
"""

from __future__ import annotations

import base64
import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tf.gen import grpc_controller_pb2, grpc_controller_pb2_grpc, grpc_stdio_pb2_grpc
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as services
from tf.runner import _self_signed_cert

_SHUTDOWN_SECONDS = 0.05

# name: type, then R(equired), O(ptional), C(omputed), S(ensitive), D(eprecated).
_PROVIDER = "token:string:OS endpoint endpoint_hetzner poll_interval poll_function"
_RESOURCES = {
    "hcloud_server": """
        id:string:OC name:string:R server_type:string:R image:string:OC location:string:OC
        datacenter:string:OCD user_data iso rescue backup_window:string:CD ipv4_address:string:C
        ipv6_address:string:C ipv6_network:string:C status:string:C
        keep_disk:bool:O backups:bool:O allow_deprecated_images:bool:OD
        ignore_remote_firewall_ids:bool:O delete_protection:bool:O rebuild_protection:bool:O
        shutdown_before_deletion:bool:O ssh_keys:list:O labels:map:O firewall_ids:numbers:OC
        placement_group_id:number:O primary_disk_size:number:C
    """,
    "hcloud_ssh_key": """
        id:string:C name:string:R public_key:string:R fingerprint:string:C labels:map:OC
    """,
    "hcloud_firewall": "id:string:OC name:string:R labels:map:OC",
    "hcloud_volume": """
        id:string:OC name:string:R location:string:OC linux_device:string:C format
        size:number:R server_id:number:OC automount:bool:O delete_protection:bool:O labels:map:O
    """,
}
_BLOCKS = {  # resource -> block -> nesting, attributes
    "hcloud_server": {
        "public_net": (
            "SET",
            "ipv4_enabled:bool:O ipv6_enabled:bool:O ipv4:number:OC ipv6:number:OC",
        ),
        "network": (
            "SET",
            "network_id:number:OC subnet_id:string:OC ip:string:OC alias_ips:set:OC "
            "mac_address:string:C",
        ),
        "timeouts": ("SINGLE", "create"),
    },
    "hcloud_firewall": {
        "apply_to": ("SET", "label_selector:string:OC server:number:OC"),
        "rule": (
            "SET",
            "direction:string:R protocol:string:R port description source_ips:set:O "
            "destination_ips:set:O",
        ),
    },
}
_TYPES: dict[str, object] = {
    "string": "string",
    "number": "number",
    "bool": "bool",
    "list": ["list", "string"],
    "set": ["set", "string"],
    "numbers": ["set", "number"],
    "map": ["map", "string"],
}


def attribute(text: str) -> pb.Schema.Attribute:
    """Read ``name``, ``name:type`` or ``name:type:flags``; an optional string by default."""
    name, kind, flags = (
        (*text.split(":"), "string", "O")[:3] if ":" not in text else text.split(":")
    )
    return pb.Schema.Attribute(
        name=name,
        type=json.dumps(_TYPES[kind]).encode(),
        required="R" in flags,
        optional="O" in flags,
        computed="C" in flags,
        sensitive="S" in flags,
        deprecated="D" in flags,
    )


def schema(attributes: str, blocks: dict[str, tuple[str, str]]) -> pb.Schema:
    """Return a schema of version 0."""
    nested = [
        pb.Schema.NestedBlock(
            type_name=name,
            nesting=pb.Schema.NestedBlock.NestingMode.Value(nesting),
            block=pb.Schema.Block(attributes=[attribute(one) for one in own.split()]),
        )
        for name, (nesting, own) in blocks.items()
    ]
    return pb.Schema(
        version=0,
        block=pb.Schema.Block(
            attributes=[attribute(one) for one in attributes.split()], block_types=nested
        ),
    )


class Provider(services.ProviderServicer):
    """Answers what `validate` and mocked tests ask; everything else is unimplemented."""

    def GetProviderSchema(self, request: Any, context: Any) -> Any:  # noqa: N802
        """All schemas."""
        return pb.GetProviderSchema.Response(
            provider=schema(_PROVIDER, {}),
            resource_schemas={
                name: schema(text, _BLOCKS.get(name, {})) for name, text in _RESOURCES.items()
            },
            server_capabilities=pb.ServerCapabilities(get_provider_schema_optional=True),
        )

    def ValidateProviderConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Nothing but the schema is checked."""
        return pb.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Nothing but the schema is checked."""
        return pb.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Nothing but the schema is checked."""
        return pb.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request: Any, context: Any) -> Any:  # noqa: N802
        """There is nothing to configure."""
        return pb.ConfigureProvider.Response()

    def StopProvider(self, request: Any, context: Any) -> Any:  # noqa: N802
        """There is nothing to stop."""
        return pb.StopProvider.Response()


class Controller(grpc_controller_pb2_grpc.GRPCControllerServicer):
    """go-plugin's: ends the process."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def Shutdown(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer, and end shortly after."""
        threading.Timer(_SHUTDOWN_SECONDS, self.over.set).start()
        return grpc_controller_pb2.Empty()


class Stdio(grpc_stdio_pb2_grpc.GRPCStdioServicer):
    """go-plugin's: has nothing to say."""

    def StreamStdio(self, request: Any, context: Any) -> Any:  # noqa: N802
        """An empty stream."""
        return iter(())


def main() -> None:
    """Shake hands on stdout, and serve until told to stop."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    controller = Controller()
    services.add_ProviderServicer_to_server(Provider(), server)
    grpc_controller_pb2_grpc.add_GRPCControllerServicer_to_server(controller, server)
    grpc_stdio_pb2_grpc.add_GRPCStdioServicer_to_server(Stdio(), server)
    certificate, credentials = _self_signed_cert()
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/provider.sock"
        server.add_secure_port(f"unix://{address}", credentials)
        server.start()
        shown = base64.b64encode(certificate).decode().rstrip("=")
        print(f"1|6|unix|{address}|grpc|{shown}", flush=True)
        controller.over.wait()
        server.stop(grace=0)


if __name__ == "__main__":
    main()
