"""What the site needs beyond `docs/`: pages from other folders, and links that lead out of `docs/`.

On GitHub such links work as they stand. On the site they lead to the page that shows the file, or else to the file in
the repository.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SHOWN = {"CHANGELOG.md": "changelog.md", "examples/your_data.ipynb": "your_data.ipynb"}
"""Files of other folders by the page that shows them."""
_LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)(?=[)#])")


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are files of other folders."""
    for source, page in SHOWN.items():
        file = File(page, str((ROOT / source).parent), config.site_dir, config.use_directory_urls)
        file.abs_src_path = str(ROOT / source)
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that lead out of `docs/`; one to a file that does not exist stays, and stops a strict build."""

    def turned(link: re.Match[str]) -> str:
        target = normpath(str(PurePosixPath("docs", page.file.src_uri).parent / link[1]))
        if target in SHOWN:
            return SHOWN[target]
        place = ROOT / target
        if not place.exists():
            return link[1]
        return f"{config.repo_url.rstrip('/')}/{'tree' if place.is_dir() else 'blob'}/main/{target}"

    return _LINK.sub(turned, markdown)
