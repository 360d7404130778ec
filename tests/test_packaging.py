"""What `pip install` gets: a source distribution that builds without the repository, and every file of the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUFFIXES = {".cpp", ".h", ".cu", ".cuh"}
LEFT_OUT = {"mcfhe/service/web/package.json"}  # tells node what the modules are, for the tests


def _tracked(*folders: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution, made in a copy so that the working tree stays as it is."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in _tracked():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "tree" / name)
    _setup(folder / "tree", "sdist", "--dist-dir", str(folder))
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def _setup(folder: Path, *command: str) -> None:
    done = subprocess.run([sys.executable, "setup.py", "--quiet", *command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_source_distribution_has_all_that_a_build_reads(distribution: Path) -> None:
    sources = [name for name in _tracked("csrc") if Path(name).suffix in SUFFIXES]
    wanted = {name for name in sources if not name.startswith("csrc/testing/")} | set(_tracked("mcfhe", "docs"))
    wanted |= {"setup.py", "pyproject.toml", "README.md", "LICENSE", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    assert [name for name in sorted(wanted - LEFT_OUT) if not (distribution / name).is_file()] == []


def test_the_source_distribution_has_nothing_else(distribution: Path) -> None:
    found = {str(path.relative_to(distribution)) for path in distribution.rglob("*") if path.is_file()}
    made = {name for name in found if name.startswith("mcfhe.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    others = found - made - set(_tracked())
    assert others == set()
    assert [name for name in found if name.startswith(("tests/", "benchmarks/", "csrc/testing/"))] == []


def test_a_package_built_from_it_has_every_file(distribution: Path, tmp_path: Path) -> None:
    _setup(distribution, "build_py", "--build-lib", str(tmp_path))
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == set(_tracked("mcfhe")) - LEFT_OUT
