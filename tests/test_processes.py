"""Two processes that train together: one process's losses, and only the first publishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgeslim
from edgeslim.errors import UsageError
from edgeslim.processes import process_count, process_rank

ROOT = Path(edgeslim.__file__).parent.parent
CURVE = """\
import json, sys
from pathlib import Path
import numpy as np, torch
sys.path.insert(0, str(Path(sys.argv[1])))
import test_loop as shared
torch.manual_seed(0)
torch.set_num_threads(1)
net = shared.TorchModel(module=shared.Net())
options = shared.replace(shared.OPTIONS, epochs=4, accumulate=2)
_, found = shared.run(net, options, shared.make_context(Path(".")))
state = {name: value.tolist() for name, value in _.module.state_dict().items()}
from edgeslim.processes import process_rank
Path(f"rank{process_rank()}.json").write_text(json.dumps([found.losses, list(found.validation.values()), state]))
"""
PROJECT = """\
model = "{model}"
target = "board.toml"
[data]
calibration = "calibration.txt"
evaluation = "evaluation.jsonl"
training = "training.jsonl"
[budget]
max_drop = 1
[[steps]]
use = "distill"
student_layers = 1
epochs = 2
batch_size = 8
learning_rate = 0.01
"""
BOARD = 'extends = "android-arm64"\nname = "board"\nsummary = "a board"\n[package]\nkind = "tar"\n'
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
LAUNCH = (*LAUNCH, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")


def run(folder: Path, *command: str) -> str:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    (tmp_path / "curve.py").write_text(CURVE, encoding="utf-8")
    run(tmp_path, "curve.py", str(Path(__file__).parent / "training"))
    one = json.loads((tmp_path / "rank0.json").read_text(encoding="utf-8"))
    run(tmp_path, *LAUNCH, "curve.py", str(Path(__file__).parent / "training"))
    both = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert both[0] == both[1]
    assert both[0][0] == pytest.approx(one[0], abs=1e-4)
    assert both[0][1] == pytest.approx(one[1], abs=1e-4)


@pytest.mark.slow
def test_the_first_process_alone_publishes(
    tmp_path: Path, tiny_classifier: Path, labelled_texts: tuple[tuple[str, str], ...]
) -> None:
    def rows(part: tuple[tuple[str, str], ...]) -> str:
        return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in part)

    (tmp_path / "board.toml").write_text(BOARD, encoding="utf-8")
    (tmp_path / "calibration.txt").write_text("".join(f"{text}\n" for text, _ in labelled_texts[:8]), encoding="utf-8")
    (tmp_path / "evaluation.jsonl").write_text(rows(labelled_texts[8:30]), encoding="utf-8")
    (tmp_path / "training.jsonl").write_text(rows(labelled_texts[30:]), encoding="utf-8")
    (tmp_path / "edgeslim.toml").write_text(PROJECT.format(model=tiny_classifier), encoding="utf-8")
    one = json.loads(run(tmp_path, "-m", "edgeslim", "build", "--json", "-o", "one"))
    said = run(tmp_path, *LAUNCH, "-m", "edgeslim", "build", "--json", "-o", "two")
    two = json.loads(said)  # one report, so from one process
    for name in ("first_loss", "last_loss", "validation_loss"):
        assert two["steps"][1]["metrics"][name] == pytest.approx(one["steps"][1]["metrics"][name], abs=1e-4)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    assert not list(tmp_path.glob(".edgeslim-build-*"))


def test_who_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    assert (process_rank(), process_count()) == (0, 1)  # another launcher's
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert (process_rank(), process_count()) == (1, 2)
    with pytest.raises(UsageError, match="process 1 of 2"):
        edgeslim.build("model", target="android-arm64")
