"""The part of the metadata that is computed: README.md with links that work where the repository is not.

On the package index a path of the repository leads nowhere. All else stands in setup.cfg.
"""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent


def readme(source: str) -> str:
    """README.md with the addresses of what it links to, and of its pictures.

    Args:
        source: the repository's address.
    """
    text = (HERE / "README.md").read_text(encoding="utf-8")
    raw = source.replace("github.com", "raw.githubusercontent.com")
    text = re.sub(r'(<img src=")(?!https?:)', rf"\1{raw}/main/", text)
    return re.sub(r"(\]\()(?!https?:|#)", rf"\1{source}/blob/main/", text)


if __name__ == "__main__":
    config = ConfigParser()
    config.read(HERE / "setup.cfg", encoding="utf-8")
    urls = dict(line.split(" = ") for line in config["metadata"]["project_urls"].strip().splitlines())
    setup(long_description=readme(urls["Source"]), long_description_content_type="text/markdown")
