"""Parses the subset of Dockerfile and .dockerignore that this project uses. Anything else is an
error.
"""

import json
import re
import shlex
import shutil
from pathlib import Path, PurePosixPath


class Stage:
    def __init__(self, base, name):
        self.base = base
        self.name = name
        self.steps = []

    def all(self, instruction):
        return [rest for word, rest in self.steps if word == instruction]

    def one(self, instruction):
        (rest,) = self.all(instruction)
        return rest

    def pairs(self, instruction):
        """Returns the `key=value` pairs of all ENV or LABEL lines."""
        return dict(
            pair.split("=", 1) for rest in self.all(instruction) for pair in shlex.split(rest)
        )

    def argv(self, instruction):
        """Returns the exec form (a JSON list) of ENTRYPOINT, CMD or HEALTHCHECK."""
        return json.loads(re.search(r"\[.*\]", self.one(instruction)).group())


def stages(dockerfile):
    lines = [
        line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = []
    for line in filter(str.strip, text.splitlines()):
        word, rest = line.split(None, 1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name or None))
        else:
            found[-1].steps.append((word, rest))
    return found


class Context:
    """The folder passed to `docker build`, without the files that .dockerignore excludes."""

    def __init__(self, root):
        self.root = root
        lines = (root / ".dockerignore").read_text().splitlines()
        self.rules = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if any("**" in rule for rule in self.rules):
            raise ValueError("`**` in .dockerignore is not understood here")

    def has(self, path):
        """Returns whether the context has this path. The last rule that names the path or a parent
        folder decides.
        """
        path = PurePosixPath("/", path)
        names = [path, *path.parents[:-1]]
        kept = True
        for rule in self.rules:
            if any(name.match("/" + rule.lstrip("!").strip("/")) for name in names):
                kept = rule.startswith("!")
        return kept

    def copy(self, sources, target, into_folder):
        """Performs a COPY of a folder's contents or of files. Times are kept, as Docker does."""
        for source in sources:
            here = self.root / source
            files = (
                [path for path in here.rglob("*") if path.is_file()] if here.is_dir() else [here]
            )
            for file in files:
                if not self.has(file.relative_to(self.root)):
                    raise FileNotFoundError(f"COPY {source}: .dockerignore keeps {file} out")
                below = (
                    file.relative_to(here)
                    if here.is_dir()
                    else Path(file.name if into_folder else "")
                )
                place = target / below
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place)
