"""A hook of mkdocs: links from docs/ to files of the repository.

On a code host `[the study](../bench/studies/README.md)` is a link. The site holds docs/ alone: there the same words are
followed by the file's path, and a picture of the repository is copied into the site.
"""

import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

PICTURE = re.compile(r"(!\[[^\]]*\]\()\.\./([^)\s]+)\)")
LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s#]+)(?:#[^)\s]*)?\)")


def on_files(files, config):
    """Pictures outside of docs/ join the site, under their own paths."""
    root = Path(config.docs_dir).parent
    pages = [file.content_string for file in files.documentation_pages()]
    for path in sorted({path for text in pages for _, path in PICTURE.findall(text)}):
        files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """The page with its links to the repository as words; PluginError for a file that is not there."""
    root = Path(config.docs_dir).parent
    for path in [path for _, path in PICTURE.findall(markdown) + LINK.findall(markdown)]:
        if not (root / path).exists():
            raise PluginError(f"{page.file.src_uri} links to ../{path}, which is not in the repository")
    markdown = PICTURE.sub(r"\1\2)", markdown)
    return LINK.sub(lambda m: m[1] if m[1].strip("`") == m[2] else f"{m[1]} `{m[2]}`", markdown)
