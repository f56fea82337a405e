"""What a person sees of a job in the Ray dashboard, through headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from toy import write_config

from benchmarks.ray_nodes import RayNodes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install the package chromium of the distribution"),
]


@pytest.fixture(scope="module")
def signed_in(nodes: RayNodes) -> Iterator[str]:
    """The dashboard's address for a browser that has given the token: each of its requests carries it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = nodes.ask(self.path)
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/octet-stream"))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def browse(url: str, profile: Path, *options: str) -> str:
    """The page's DOM after its scripts have run."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless=new",
            "--no-sandbox",  # as root, in a container
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            "--window-size=1500,1000",
            "--virtual-time-budget=20000",
            *options,
            url,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def words(dom: str) -> str:
    return re.sub(r"<[^>]+>", " ", dom)


def test_a_job_and_the_nodes_it_runs_on_can_be_watched(nodes: RayNodes, signed_in: str, tmp_path: Path) -> None:
    submit = [sys.executable, "-m", "spirl_ray.cli", "submit", str(write_config(tmp_path))]
    command = [*submit, "--address", nodes.dashboard]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=nodes.environment, cwd=nodes.folder)
    assert running.stdout is not None
    (job,) = re.findall(r"spirl-toy-\w+", running.stdout.readline())
    while not nodes.ask(f"/api/jobs/{job}").json().get("driver_info"):
        time.sleep(0.5)
    assert job in words(browse(f"{signed_in}/#/jobs", tmp_path / "jobs", "--dump-dom"))

    assert running.wait(timeout=1800) == 0
    dom = words(browse(f"{signed_in}/#/jobs/{job}", tmp_path / "job", "--dump-dom"))
    assert job in dom
    assert "SUCCEEDED" in dom
    assert "spirl_ray.cli run experiment.yaml" in dom
    picture = Path(os.environ.get("SPIRL_TEST_SCREENSHOT", tmp_path / "page.png")).absolute()
    browse(f"{signed_in}/#/jobs/{job}", tmp_path / "picture", f"--screenshot={picture}")
    assert picture.stat().st_size > 20_000
    cluster = words(browse(f"{signed_in}/#/cluster", tmp_path / "cluster", "--dump-dom"))
    assert cluster.count("ALIVE") >= 2
    assert re.search(r"\d+(\.\d+)?%", cluster)  # how busy the nodes are


def test_without_the_token_the_page_asks_for_it(nodes: RayNodes, tmp_path: Path) -> None:
    dom = words(browse(f"{nodes.dashboard}/#/jobs", tmp_path / "profile", "--dump-dom"))
    assert "Token Authentication Required" in dom or "authentication token" in dom.lower()
