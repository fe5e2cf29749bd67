"""Builds the package; everything static about it is in pyproject.toml.

In the checkout the networks are `models`. A wheel has one top-level name, so there they are
`kansformer.models`: their folder is mapped, and `from models` in `kansformer/` is rewritten. An
editable installation is the checkout as it is, with both names: it is for work on the project, and
not for use beside another package called `models`.
"""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

IS_EDITABLE = "editable_wheel" in sys.argv
NETWORKS = find_packages(include=["models*"])


class BuildPy(build_py):
    """Rewrites the imports of `models` in what it has copied."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """All but kansformer/models.py, whose name the networks take."""
        modules = super().find_package_modules(package, package_dir)
        return [part for part in modules if IS_EDITABLE or part[:2] != ("kansformer", "models")]

    def run(self) -> None:
        """Copies, then rewrites."""
        super().run()
        for path in () if IS_EDITABLE else Path(self.build_lib).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            text = re.sub(r"^(\s*from) models\b", r"\1 kansformer.models", text, flags=re.M)
            if re.search(r"^\s*import models\b", text, flags=re.M):
                raise SystemExit(f"{path}: write `from models... import ...`, see CONTRIBUTING.md")
            path.write_text(text, encoding="utf-8")


def requirements(name: str) -> list[str]:
    """The packages of a requirements file, without those that it includes by -r."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


extras = {name: requirements(f"requirements-{name}.txt") for name in ("export", "heic", "web")}
extras["dev"] = [*requirements("requirements-dev.txt"), *extras["export"], *extras["web"]]
setup(
    packages=[
        *find_packages(include=["kansformer*"]),
        *(NETWORKS if IS_EDITABLE else [f"kansformer.{name}" for name in NETWORKS]),
    ],
    package_dir={} if IS_EDITABLE else {"kansformer.models": "models"},
    package_data={"": ["*.cpp", "*.h", "*.html", "py.typed"]},
    cmdclass={"build_py": BuildPy},
    install_requires=requirements("requirements.txt"),
    extras_require=extras,
)
