"""Takes spans as an OpenTelemetry collector does and prints a line for each; first, the port it listens on."""

from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    task = [a.value.string_value for a in span.attributes if a.key == "task.id"]
                    parent = span.parent_span_id.hex() or "-"
                    print("span", span.trace_id.hex(), span.span_id.hex(), parent, span.name, *task, flush=True)
        return trace_service_pb2.ExportTraceServiceResponse()


server = grpc.server(futures.ThreadPoolExecutor(2))
trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print("port", port, flush=True)
server.wait_for_termination()
