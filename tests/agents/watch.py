"""What an APM agent reports of an app, as plain data: each agent is started and read in its own way.

Nothing leaves the process: each agent gives what it would send to this module instead.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

# of the middleware that is ours to add: its spans are left out, and their children put in their place
OURS = "OrderedBackgroundMiddleware"


@dataclass(frozen=True)
class Node:
    """One span, transaction or event of an agent."""

    id: Any
    parent: Any
    what: str  # its name, and whatever else has to be the same
    start: float | None = None
    end: float | None = None


class Agent:
    """`start` comes before or after the imports; `mark` says in a task that it runs; `seen` is read once."""

    def start(self) -> None:
        raise NotImplementedError

    def fastapi_options(self) -> dict[str, Any]:
        return {}

    def instrument(self, app: Any) -> None:
        pass

    def mark(self, what: str) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def here(self) -> Any:
        """The id of what is current in the agent, None if nothing is."""
        raise NotImplementedError

    def seen(self) -> list[Node]:
        raise NotImplementedError


class Sentry(Agent):
    def start(self) -> None:
        import sentry_sdk
        from sentry_sdk.transport import Transport

        envelopes: list[Any] = []

        class Keep(Transport):
            def capture_envelope(self, envelope: Any) -> None:
                envelopes.append(envelope)

        self.sdk, self.envelopes = sentry_sdk, envelopes
        sentry_sdk.init(dsn="https://nobody@sentry.invalid/1", transport=Keep, traces_sample_rate=1.0)

    def mark(self, what: str) -> AbstractContextManager[Any]:
        self.sdk.set_tag(what, "yes")  # to be seen in what comes later in the same request
        self.sdk.capture_message(what)
        return self.sdk.start_span(name=what)

    def here(self) -> Any:
        span = self.sdk.get_current_span()
        return span and span.containing_transaction and span.containing_transaction.span_id

    def seen(self) -> list[Node]:
        self.sdk.flush()
        nodes = []
        for envelope in self.envelopes:
            for item in envelope.items:
                data = item.payload.json
                if item.type == "transaction":
                    nodes += self._transaction(data)
                elif item.type == "event":
                    trace = data["contexts"]["trace"]
                    parts = [data.get(name) for name in ("logger", "transaction", "message", "logentry")]
                    for error in data.get("exception", {}).get("values", []):
                        parts += [error["type"], error["value"], sorted(error["mechanism"].items())]
                    parts.append(sorted(data.get("tags", {})))
                    what = " ".join(map(str, ["event", *parts]))
                    nodes.append(Node(data["event_id"], trace["span_id"], what))
                else:
                    nodes.append(Node(object(), None, f"a {item.type}"))
        self.envelopes.clear()
        return nodes

    def _transaction(self, data: Any) -> Iterator[Node]:
        trace = data["contexts"]["trace"]
        assert all(span["trace_id"] == trace["trace_id"] for span in data["spans"])
        what = f"transaction {data['transaction']} {trace['op']} {trace.get('status')} {sorted(data['tags'])}"
        yield Node(trace["span_id"], trace.get("parent_span_id"), what, *self._times(data))
        for span in data["spans"]:
            what = f"{span['op']} {span['description']} {span.get('status')}"
            yield Node(span["span_id"], span["parent_span_id"], what, *self._times(span))

    @staticmethod
    def _times(data: Any) -> tuple[float, float]:
        from sentry_sdk.utils import datetime_from_isoformat

        start, end = (data[name] for name in ("start_timestamp", "timestamp"))
        if isinstance(start, str):
            start, end = datetime_from_isoformat(start), datetime_from_isoformat(end)
        return start.timestamp(), end.timestamp()


class Datadog(Agent):
    def start(self) -> None:
        for name in ("INSTRUMENTATION_TELEMETRY", "REMOTE_CONFIGURATION", "CRASHTRACKING"):
            os.environ[f"DD_{name}_ENABLED"] = "false"
        import ddtrace
        from ddtrace.trace import TraceFilter, tracer

        spans: list[Any] = []

        class Keep(TraceFilter):
            def process_trace(self, trace: list[Any]) -> None:
                spans.extend(trace)

        self.tracer, self.spans = tracer, spans
        tracer.configure(trace_processors=[Keep()])
        ddtrace.patch(starlette=True, fastapi=True)

    def mark(self, what: str) -> AbstractContextManager[Any]:
        return self.tracer.trace(what)

    def here(self) -> Any:
        span = self.tracer.current_span()
        return span and span.trace_id

    def seen(self) -> list[Node]:
        ids = {span.span_id: span for span in self.spans}
        nodes = []
        for span in self.spans:
            targets = [ids.get(link.span_id) for link in span._get_links()]
            links = [target and target.resource for target in targets]
            parts = [span.name, span.resource, span.span_type, span.error, span.get_tag("error.type"), links]
            end = span.start + span.duration
            nodes.append(Node(span.span_id, span.parent_id, " ".join(map(str, parts)), span.start, end))
        self.spans.clear()
        return nodes


class NewRelic(Agent):
    def start(self) -> None:
        settings = {"DEVELOPER_MODE": "true", "LICENSE_KEY": "none", "APP_NAME": "none", "LOG": os.devnull}
        os.environ.update({f"NEW_RELIC_{name}": value for name, value in settings.items()})
        import newrelic.agent
        from newrelic.core.stats_engine import StatsEngine

        self.agent = newrelic.agent
        self.transactions: list[Any] = []
        self.errors: list[Any] = []
        record, notice = StatsEngine.record_transaction, StatsEngine.notice_error

        def keep_transaction(engine: Any, transaction: Any) -> Any:
            self.transactions.append(transaction)
            return record(engine, transaction)

        def keep_error(engine: Any, error: Any = None, *args: Any, **kwargs: Any) -> Any:
            self.errors.append(error)
            return notice(engine, error, *args, **kwargs)

        StatsEngine.record_transaction, StatsEngine.notice_error = keep_transaction, keep_error
        newrelic.agent.initialize()
        newrelic.agent.register_application(timeout=20)

    def mark(self, what: str) -> AbstractContextManager[Any]:
        self.agent.add_custom_attribute(what, "yes")
        return self.agent.FunctionTrace(what)

    def here(self) -> Any:
        transaction = self.agent.current_transaction()
        return transaction and transaction.guid

    def seen(self) -> list[Node]:
        nodes = [Node(object(), None, f"error outside {error}") for error in self.errors]
        for transaction in self.transactions:
            parts = [transaction.path, transaction.type, [one.name for one in transaction.user_attributes]]
            what = " ".join(map(str, ["transaction", *parts]))
            nodes.append(Node(transaction.guid, None, what, transaction.start_time, transaction.end_time))
            for error in transaction.errors:
                nodes.append(Node(object(), transaction.guid, f"error {error.type} {error.message}"))
            nodes += self._traces(transaction.guid, transaction.root.children)
        self.transactions.clear()
        self.errors.clear()
        return nodes

    def _traces(self, parent: Any, children: Iterable[Any]) -> Iterator[Node]:
        for child in children:
            yield Node(child.guid, parent, child.name, child.start_time, child.end_time)
            yield from self._traces(child.guid, child.children)


class OpenTelemetry(Agent):
    def start(self) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.trace, self.exporter = trace, InMemorySpanExporter()
        self.processor = SimpleSpanProcessor(self.exporter)
        self.configure(TracerProvider())

    def configure(self, provider: Any) -> None:
        provider.add_span_processor(self.processor)
        self.trace.set_tracer_provider(provider)

    def instrument(self, app: Any) -> None:
        if any(cls.__name__ == "FastAPI" for cls in type(app).__mro__):
            from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor as Instrumentor
        else:
            from opentelemetry.instrumentation.starlette import StarletteInstrumentor as Instrumentor
        Instrumentor.instrument_app(app)

    def mark(self, what: str) -> AbstractContextManager[Any]:
        return self.trace.get_tracer("app").start_as_current_span(what)

    def here(self) -> Any:
        return self.trace.get_current_span().get_span_context().trace_id or None

    def seen(self) -> list[Node]:
        nodes = []
        for span in self.exporter.get_finished_spans():
            if span.attributes.get("logfire.span_type") == "pending_span":
                continue
            events = [(event.name, event.attributes.get("exception.type")) for event in span.events]
            names = [span.attributes.get(name) for name in ("code.function.name", "code.function")]
            parts = [span.name, *names, span.kind, span.status.status_code, span.status.description, events]
            parent = span.parent and span.parent.span_id
            what = " ".join(map(str, parts))
            nodes.append(Node(span.context.span_id, parent, what, span.start_time, span.end_time))
        self.exporter.clear()
        return nodes


class FastAPIs(OpenTelemetry):
    """FastAPI's own spans, which it has since 0.142."""

    def configure(self, provider: Any) -> None:
        super().configure(provider)
        self.provider = provider

    def fastapi_options(self) -> dict[str, Any]:
        return {"telemetry": {"tracer_provider": self.provider}}

    def instrument(self, app: Any) -> None:
        pass


class Logfire(OpenTelemetry):
    def configure(self, provider: Any) -> None:
        import logfire

        self.logfire = logfire
        logfire.configure(
            send_to_logfire=False,
            console=False,
            metrics=False,
            inspect_arguments=False,
            additional_span_processors=[self.processor],
        )

    def instrument(self, app: Any) -> None:
        if any(cls.__name__ == "FastAPI" for cls in type(app).__mro__):
            self.logfire.instrument_fastapi(app)
        else:
            self.logfire.instrument_starlette(app)

    def mark(self, what: str) -> AbstractContextManager[Any]:
        return self.logfire.span(what)


class Scout(Agent):
    def start(self) -> None:
        from scout_apm.api import Config
        from scout_apm.core.agent.socket import CoreAgentSocketThread

        self.commands: list[Any] = []
        CoreAgentSocketThread.send = lambda command, *args, **kwargs: self.commands.append(command)
        Config.set(monitor=True, key="none", core_agent_launch=False, core_agent_download=False)

    def instrument(self, app: Any) -> None:
        from scout_apm.async_.starlette import ScoutMiddleware

        app.add_middleware(ScoutMiddleware)

    def mark(self, what: str) -> AbstractContextManager[Any]:
        from scout_apm.core.tracked_request import TrackedRequest

        return TrackedRequest.instance().span(what)

    def here(self) -> Any:
        from scout_apm.core.tracked_request import TrackedRequest

        return TrackedRequest.instance().request_id

    def seen(self) -> list[Node]:
        nodes = []
        for batch in self.commands:
            commands = [next(iter(command.message().items())) for command in getattr(batch, "commands", ())]
            ends = {said["span_id"]: said["timestamp"] for kind, said in commands if kind == "StopSpan"}
            tags = sorted(said["tag"] for kind, said in commands if kind == "TagRequest")
            for kind, said in commands:
                if kind == "StartRequest":
                    nodes.append(Node(said["request_id"], None, f"request {tags}"))
                elif kind == "StartSpan":
                    times = [
                        datetime.fromisoformat(time).timestamp()
                        for time in (said["timestamp"], ends[said["span_id"]])
                    ]
                    parent = said["parent_id"] or said["request_id"]
                    nodes.append(Node(said["span_id"], parent, said["operation"], *times))
        self.commands.clear()
        return nodes


AGENTS = {
    "sentry": Sentry,
    "ddtrace": Datadog,
    "newrelic": NewRelic,
    "opentelemetry": OpenTelemetry,
    "fastapi": FastAPIs,
    "logfire": Logfire,
    "scout": Scout,
}


def trees(nodes: list[Node]) -> list[Any]:
    """The nodes as trees, in an order that does not depend on times or ids: [what, [children]] each."""
    known = {node.id: node for node in nodes}
    children: dict[Any, list[Node]] = {}

    def seen_parent(node: Node) -> Any:
        """The nearest one above that is not our middleware's."""
        parent = node.parent
        while parent in known and OURS in known[parent].what:
            parent = known[parent].parent
        return parent if parent in known else None

    for node in nodes:
        if OURS not in node.what:
            children.setdefault(seen_parent(node), []).append(node)

    def tree(node: Node) -> list[Any]:
        below = sorted((tree(child) for child in children.get(node.id, ())), key=repr)
        what = node.what
        parent = known.get(seen_parent(node))
        if parent is None and node.parent is not None:
            what += " (its parent was not reported)"
        elif parent is not None and None not in (node.end, parent.end) and node.end > parent.end:
            what += " (ends after its parent)"
        return [what, below]

    return sorted((tree(node) for node in children.get(None, ())), key=repr)
