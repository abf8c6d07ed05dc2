"""Only `equivalence` is in the wheel; `proofs`, `tests` are in the sdist. Usage: FILE.py DIST."""

import sys
import tarfile
import zipfile
from pathlib import Path

DATA = "equivalence/data/minilm_heads.npz"


def main(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"equivalence"}, tops
    assert {DATA, "equivalence/py.typed", "equivalence/data/LICENSE-Apache-2.0.txt"} <= set(names)
    with tarfile.open(sdist) as archive:
        parts = {Path(name).parts[1] for name in archive.getnames() if len(Path(name).parts) > 1}
    assert {"equivalence", "proofs", "tests", "README.md", "tox.ini", "pyproject.toml"} <= parts
    print(f"{wheel.name}: equivalence alone, {len(names)} files; {sdist.name}: {sorted(parts)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
