"""A backend developer's first hour: a small HTTP service over an index on disk, killed in the middle of its work.

    python backend_developer.py                 # starts the service, asks it, kills it, starts it again
    python backend_developer.py serve PATH      # the service alone; prints its port
"""

import json
import signal
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import xtree


def serve(path: str) -> None:
    """One process writes. Its threads share the tree: readers never wait, and writers share syncs."""
    with xtree.open(path, dims=2) as tree:

        class Places(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                try:
                    answer = self.answer(asked)
                except (ValueError, TypeError, KeyError, OverflowError) as error:  # what the client got wrong
                    self.reply(400, {"error": str(error)})
                else:
                    self.reply(200, answer)

            def answer(self, asked: dict) -> object:
                if self.path == "/put":
                    tree.insert(asked["id"], asked["box"])
                    return {"stored": asked["id"]}  # from here on it survives kill -9 and power loss
                if self.path == "/query":
                    # tolist(): JSON knows no numpy arrays, nor numpy's integers
                    return {"ids": tree.query(asked["box"]).tolist()}
                ids, distances = tree.nearest(asked["point"], asked.get("k", 1), return_distance=True)
                return [{"id": id, "distance": far} for id, far in zip(ids.tolist(), distances.tolist())]

            def reply(self, status: int, answer: object) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Places) as server:
            print(server.server_port, flush=True)
            server.serve_forever()


class Service:
    """The service in a process of its own."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen([sys.executable, __file__, "serve", path], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())

    def ask(self, what: str, **asked: object) -> object:
        request = Request(f"http://127.0.0.1:{self.port}/{what}", json.dumps(asked).encode())
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        self.process.wait()
        self.process.stdout.close()


def main(path: Path) -> None:
    service = Service(path)
    try:
        for id in range(200):
            service.ask("put", id=id, box=[id, id, id + 1, id + 1])
        print("within 3 and 5:", service.ask("query", box=[3.5, 3.5, 4.5, 4.5]))
        try:
            service.ask("put", id=7, box=[5, 5, 1, 1])
        except HTTPError as refused:
            print(refused.code, json.load(refused)["error"])
        try:
            xtree.open(path)
        except xtree.LockedError as error:
            print("a second process:", error.strerror)
    finally:
        service.kill()  # in the middle of whatever it does

    service = Service(path)
    try:
        found = service.ask("query", box=[0, 0, 300, 300])
        print(f"after kill -9: {len(found['ids'])} places")
        assert sorted(found["ids"]) == list(range(200))
        nearest = service.ask("nearest", point=[-1, 0], k=2)
        print("nearest:", nearest)
        assert nearest == [{"id": 0, "distance": 1.0}, {"id": 1, "distance": 5**0.5}]
    finally:
        service.kill()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary) / "places.xtree")
