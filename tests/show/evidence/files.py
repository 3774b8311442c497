"""Changes of files as editors and Kubernetes make them."""

import os
import shutil


def replace_file(path, content):
    """Writes text or bytes to a new file and renames it over `path`."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(to_bytes(content))
    os.replace(temporary, path)


def to_bytes(content):
    return content.encode() if isinstance(content, str) else content


class MountedFolder:
    """A folder as Kubernetes mounts ConfigMaps and secrets.

    The files are in a folder of their version. The link `..data` leads to the current version, and
    is replaced when the files change.
    """

    def __init__(self, folder):
        self.folder = folder
        self.versions = 0

    def publish(self, files):
        """Makes a new version with `files`, a dictionary from names to text or bytes."""
        data = self.folder / "..data"
        previous = self.folder / os.readlink(data) if data.is_symlink() else None
        self.versions += 1
        version = self.folder / f"..version-{self.versions}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_bytes(to_bytes(content))
        self._link(data, version.name)
        if previous:
            shutil.rmtree(previous)

    def link(self, name):
        """Replaces the file `name` by a link to the current version of it."""
        self._link(self.folder / name, os.path.join("..data", name))

    def _link(self, path, target):
        temporary = path.with_name(f"..{path.name}_tmp")
        temporary.symlink_to(target)
        os.replace(temporary, path)
