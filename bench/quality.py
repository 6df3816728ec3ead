"""The quality evaluation, and keeping a run: `python bench/quality.py [options of tiledattn bench quality]`.

`python bench/quality.py --record build/quality/quality.json` puts a run under bench/results/quality and its table and
picture into the documentation.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import record  # noqa: E402  # found beside this folder
from tiledattn.bench.quality import picture, results  # noqa: E402
from tiledattn.bench.quality.app import main  # noqa: E402
from tiledattn.bench.quality.measures import LEAST_SEEDS  # noqa: E402
from tiledattn.files import whole_file  # noqa: E402

RESULTS = HERE / "results" / "quality"
PICTURE = HERE.parent / "docs/images/quality.png"


def keep(source: Path, folder: Path = RESULTS, shown: Path = PICTURE) -> Path:
    """Copies a valid run to its place, `<device>/<date>.json`, and draws its picture.

    Raises:
        ValueError: it is no run of the quality evaluation, or one of too few seeds to judge by.
    """
    data = results.validate(json.loads(source.read_text()))
    for model in data["models"]:
        if model["seeds"] < LEAST_SEEDS:
            raise ValueError(
                f"{source}: not kept: {model['model']} has {model['seeds']} seeds; expected at least {LEAST_SEEDS}"
            )
    target = record.place(data, folder)
    with whole_file(target) as path:
        path.write_text(json.dumps(data, indent=1) + "\n")
    picture.draw(data, shown)
    strips = source.with_name("strips.jpg")
    if strips.is_file():
        shutil.copyfile(strips, shown.with_name("quality-strips.jpg"))
    return target


if __name__ == "__main__":
    if sys.argv[1:2] == ["--record"]:
        print(keep(Path(sys.argv[2])))
        sys.exit(subprocess.run([sys.executable, str(HERE.parent / "docs/generate.py")], check=False).returncode)
    if "--help" in sys.argv:
        print(__doc__)
    sys.exit(main(sys.argv[1:]))
