"""Clients and handlers of our gRPC services, made from what the .proto files say of their methods."""

from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from qubic_lab.wire import cluster_pb2, pipeline_pb2

PIPELINE_SERVICE: ServiceDescriptor = pipeline_pb2.DESCRIPTOR.services_by_name["Pipeline"]
NODE_SERVICE: ServiceDescriptor = cluster_pb2.DESCRIPTOR.services_by_name["Node"]
REGISTRY_SERVICE: ServiceDescriptor = cluster_pb2.DESCRIPTOR.services_by_name["Registry"]


def stub_of(channel: grpc.Channel | grpc.aio.Channel, service: ServiceDescriptor) -> Any:
    """Return an object with a callable for each method of a service; requests are single messages."""
    calls = {}
    for method in service.methods:
        make = channel.unary_stream if method.server_streaming else channel.unary_unary
        calls[method.name] = make(
            f"/{service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
    return SimpleNamespace(**calls)


def add_service(server: grpc.Server | grpc.aio.Server, service: ServiceDescriptor, implementation: object) -> None:
    """Let a server answer a service by the methods of `implementation`; those that it lacks are unimplemented."""
    handlers = {}
    for method in service.methods:
        if (behaviour := getattr(implementation, method.name, None)) is not None:
            handle = (
                grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
            )
            handlers[method.name] = handle(
                behaviour,
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
