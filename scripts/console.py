"""Build the pages of the console into console/bundle, or check that the bundle is what they give.

Nobody needs node to run the pages, so the bundle is committed. Node builds it: `npm` on PATH.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSOLE = ROOT / "console"
BUNDLE = CONSOLE / "bundle"
PACKAGES = ROOT / "node_modules"


def install() -> str | None:
    """Install what builds the pages, unless it is there; why that cannot be, if it cannot."""
    npm = shutil.which("npm")
    if npm is None:
        return "there is no npm"
    if not (PACKAGES / "vite").exists():
        done = subprocess.run([npm, "ci", "--ignore-scripts"], cwd=ROOT, check=False)
        if done.returncode:
            return "npm could not install what builds it"
    return None


def build(folder: Path) -> None:
    """Build the bundle into a folder, which is emptied first. Raises CalledProcessError."""
    vite = [str(PACKAGES / ".bin" / "vite"), "build", "--logLevel", "warn"]
    subprocess.run([*vite, "--outDir", str(folder), "--emptyOutDir"], cwd=CONSOLE, check=True)


def check_sources() -> None:
    """Check types and templates. Raises CalledProcessError."""
    checker = [str(PACKAGES / ".bin" / "svelte-check"), "--fail-on-warnings"]
    subprocess.run([*checker, "--output", "human"], cwd=CONSOLE, check=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path within."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description="Build console/bundle from console/src.")
    parser.add_argument("--check", action="store_true", help="exit 1 if the bundle is not fresh")
    arguments = parser.parse_args()
    missing = install()
    if not arguments.check:
        if missing:
            sys.exit(f"the console is not built: {missing}")
        build(BUNDLE)
        return
    if missing:
        print(f"console/bundle is not compared: {missing}")
        return
    check_sources()
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        kept, built = contents(BUNDLE), contents(Path(folder))
        names = {name for name, _ in kept.items() ^ built.items()}
        if names:
            listed = "\n".join(f"  {name}" for name in sorted(names))
            sys.exit(f"console/bundle is not fresh; run make console\n{listed}")


if __name__ == "__main__":
    main()
