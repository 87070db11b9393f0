"""A hook of mkdocs: links from docs/ to files of the repository.

On a code host `[the study](../bench/studies/README.md)` is a link, and so it is on the site: pages and pictures of the
repository that a page links to join the site under their own paths. Other files do not: there the words of a link are
followed by the file's path.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
JOINS = {".md", ".png", ".svg"}


def target(file: File, link: str, root: Path) -> Path:
    """What a page's link points to, below the repository's root."""
    return Path(os.path.relpath(Path(file.abs_src_path).parent / link, root))


def uri(path: Path) -> str:
    """Where the site has a file of the repository."""
    return str(path.relative_to("docs") if path.parts[0] == "docs" else path)


def on_files(files, config):
    """What pages of the site link to, and what those link to, joins the site."""
    root = Path(config.docs_dir).parent
    pages = list(files.documentation_pages())
    for page in pages:  # grows
        for _, _, link, _ in LINK.findall(page.content_string):
            path = target(page, link, root)
            if path.suffix not in JOINS or uri(path) in files.src_uris or not (root / path).is_file():
                continue
            joined = File.generated(config, uri(path), abs_src_path=str(root / path))
            files.append(joined)
            if joined.is_documentation_page():
                pages.append(joined)
    return files


def on_page_markdown(markdown, page, config, files):
    """The page with its links as the site's own."""
    root = Path(config.docs_dir).parent
    here = Path(page.file.src_uri).parent

    def on_site(match: re.Match) -> str:
        image, words, link, anchor = match.groups()
        path = target(page.file, link, root)
        if uri(path) in files.src_uris:
            return f"{image}[{words}]({os.path.relpath(uri(path), here)}{anchor or ''})"
        if not (root / path).exists():
            return match[0]  # mkdocs names it
        return words if words.strip("`") in (str(path), path.stem) else f"{words} `{path}`"

    return LINK.sub(on_site, markdown)
