"""The documentation site builds without a warning, and shows what is not in `docs/` as well."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason="no MkDocs: pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site; a link, an anchor or a name of the API that does not exist fails the build."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "JUPYTER_PLATFORM_DIRS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {path.parent.name for path in site.glob("*/index.html")} >= pages | {"changelog", "your_data"}


def test_the_api_reference_is_made_from_docstrings(site: Path) -> None:
    page = (site / "api" / "index.html").read_text()
    assert 'id="spirl_ray.api.run"' in page
    assert "Does everything: data, skills" in page


def test_the_notebook_is_shown_with_its_figures(site: Path) -> None:
    assert "data:image/png;base64" in (site / "your_data" / "index.html").read_text()


def test_a_link_out_of_the_folder_leads_to_the_repository_or_to_its_page(site: Path) -> None:
    assert "/blob/main/benchmarks/results/maze.csv" in (site / "results" / "index.html").read_text()
    assert 'href="../your_data/' in (site / "data" / "index.html").read_text()
