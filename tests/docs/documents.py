"""The Markdown files of the project, their fenced blocks and the commands in them."""

import re
import shlex

from uda.core.resources import CHECKOUT

#: Every Markdown file that people read.
PATHS = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md")),
    *sorted((CHECKOUT / "docs").glob("*.md")),
]
TEXTS = {path.relative_to(CHECKOUT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}


def fenced(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def marked(text: str, marker: str, language: str) -> list[str]:
    """The fenced blocks that follow a marker."""
    return re.findall(rf"<!-- {marker} -->\n+```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words of every command of ours: in fenced blocks, and in backquotes within the text.

    What stands before it, such as torchrun with its options or srun, is left out; `python` too.
    """
    text = text.replace("\\\n", " ")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced(text, "bash") for line in block.split("\n")]
    inline = [line for line in re.findall(r"`([^`\n]+)`", prose) if re.match(r"(python|torchrun|uda) \S+ \S", line)]
    lines += [line for line in inline if not re.fullmatch(r"uda hardness [\w-]+", line)]  # else a name, not a command
    found = []
    for line in lines:
        if line.lstrip().startswith("#"):
            continue
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if any("<" in word for word in words):  # a name that the reader fills in
                continue
            places = [i for i, word in enumerate(words) if re.fullmatch(r"(tools|docs)/\w+\.py|benchmarks\.\w+", word)]
            if places:
                found.append(words[places[0] :])
            elif words[:1] == ["uda"] and len(words) > 1:
                found.append(words)
    return found


def links(text: str) -> list[str]:
    """Targets of links and pictures, except those to other places of the web."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", text) if not re.match(r"\w+:", link)]


def anchors(text: str) -> set[str]:
    """The anchors of its headings."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
