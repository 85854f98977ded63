"""An API server for Services, Leases and Events, just enough for lb-ipam to lead and to write.

It knows no authentication and no server-side apply: who owns a field, and what concurrent writers get, is tested in
crates/lb-ipam.
"""

import contextlib
import http.server
import json
import pathlib
import queue
import threading
import uuid

import yaml


class State:
    def __init__(self, folder):
        files = sorted(pathlib.Path(folder).glob("*.yaml"))
        documents = [document for file in files for document in yaml.safe_load_all(file.read_text())]
        self.lock, self.version, self.leases, self.watchers = threading.Lock(), 1, {}, []
        self.services = {}
        for document in documents:
            if document and document["kind"] == "Service":
                document["metadata"] |= {"resourceVersion": "1", "uid": str(uuid.uuid4())}
                self.services[document["metadata"]["namespace"], document["metadata"]["name"]] = document

    def stamp(self, document):
        self.version += 1
        document["metadata"]["resourceVersion"] = str(self.version)
        return document


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing: its log is nobody's business."""

    def answer(self, code, document):
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # Who asked may have been stopped.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def not_found(self):
        status = {"status": "Failure", "code": 404, "reason": "NotFound", "message": "not found"}
        self.answer(404, {"kind": "Status", "apiVersion": "v1"} | status)

    def body(self):
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def watch(self):
        events = queue.Queue()
        with self.state.lock:
            self.state.watchers.append(events)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while (event := events.get()) is not None:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path.endswith("/services"):
            if "watch=true" in query:
                return self.watch()
            with self.state.lock:
                metadata = {"resourceVersion": str(self.state.version)}
                items = list(self.state.services.values())
                return self.answer(
                    200, {"kind": "ServiceList", "apiVersion": "v1", "metadata": metadata, "items": items}
                )
        if lease := self.state.leases.get(path):
            return self.answer(200, lease)
        return self.not_found()

    def do_POST(self):
        document, path = self.body(), self.path.partition("?")[0]
        with self.state.lock:
            if path.endswith("/leases"):
                self.state.leases[f"{path}/{document['metadata']['name']}"] = self.state.stamp(document)
            self.answer(201, document)

    def do_PUT(self):
        document, path = self.body(), self.path.partition("?")[0]
        with self.state.lock:
            self.state.leases[path] = self.state.stamp(document)
            self.answer(200, document)

    def do_PATCH(self):
        applied = self.body()
        *_, namespace, _, name, _ = self.path.partition("?")[0].split("/")
        with self.state.lock:
            service = self.state.services[namespace, name]
            service["status"] = applied["status"]
            self.state.stamp(service)
            for watcher in self.state.watchers:
                watcher.put({"type": "MODIFIED", "object": service})
            self.answer(200, service)


@contextlib.contextmanager
def serving(folder):
    """Serves the Services of a folder of manifests; gives the URL."""
    handler = type("Bound", (Handler,), {"state": State(folder)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        for watcher in handler.state.watchers:
            watcher.put(None)
        server.shutdown()
