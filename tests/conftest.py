"""Small models and texts that the tests share. All is made here, seeded, once a session; nothing is downloaded."""

from __future__ import annotations

import csv
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeslim.errors import EdgeslimError

if TYPE_CHECKING:
    import onnx
    import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's client is first imported: no test goes out
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A server of adb that any test starts would take the emulated phone for an emulator, and so list it twice.
os.environ["ADB_LOCAL_TRANSPORT_MAX_PORT"] = "5554"

GOOD, BAD = ("fine", "lovely", "bright"), ("poor", "dull", "broken")
LABELS = ("bad", "good")
HIDDEN = 32
MAX_POSITIONS = 128
LICENCE = "A licence that lets tests use this model.\n"
CARD = "---\nlicense: apache-2.0\ntags: [tiny]\n---\n# A tiny model\n"


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """The same 80 samples in three forms: plain lines, and with the label names of ``tiny_classifier``."""

    txt: Path
    csv: Path
    jsonl: Path


@pytest.fixture(scope="session", autouse=True)
def _no_cache() -> Iterator[None]:
    """Builds of the tests run whole, and leave the user's cache alone; what is about the cache names one of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESLIM_CACHE", "off")
        yield


@pytest.fixture(scope="session")
def words() -> tuple[str, ...]:
    """Some 180 made-up words, and the six that say how good something is."""
    generator = random.Random(7)
    made = {
        "".join(generator.choice("bdfgklmnprstv") + generator.choice("aeiou") for _ in range(generator.choice((2, 3))))
        for _ in range(180)
    }
    return (*sorted(made), *GOOD, *BAD)


@pytest.fixture(scope="session")
def labelled_texts(words: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """80 different texts of 4 to 14 words, and the label that one of their words gives them."""
    generator = random.Random(11)
    neutral = words[: -len(GOOD + BAD)]
    made = []
    for number in range(80):
        line = [neutral[number], *generator.choices(neutral, k=generator.randrange(2, 13))]
        label = LABELS[number % 2]
        line.insert(generator.randrange(len(line) + 1), generator.choice(GOOD if label == "good" else BAD))
        made.append((" ".join(line), label))
    return tuple(made)


@pytest.fixture(scope="session")
def text_files(labelled_texts: tuple[tuple[str, str], ...], tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    folder = tmp_path_factory.mktemp("texts")
    files = TextFiles(txt=folder / "texts.txt", csv=folder / "texts.csv", jsonl=folder / "texts.jsonl")
    files.txt.write_text("".join(f"{text}\n" for text, _ in labelled_texts), encoding="utf-8")
    with files.csv.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *labelled_texts])
    rows = [json.dumps({"text": text, "label": label}) for text, label in labelled_texts]
    files.jsonl.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return files


@pytest.fixture(scope="session")
def tiny_tokenizer(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a WordPiece tokenizer of ``words`` and single letters, as BERT frames its texts."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *letters, *(f"##{x}" for x in letters), *words]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_POSITIONS,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: BERT of 2 layers with random weights, its tokenizer, a model card and a licence."""
    import torch
    import transformers

    torch.manual_seed(3)
    module = transformers.BertModel(bert_config(tiny_tokenizer), add_pooling_layer=False)
    return save_model(module, tiny_tokenizer, tmp_path_factory.mktemp("models") / "Tiny_BERT")


@pytest.fixture(scope="session")
def tiny_classifier(
    tiny_tokenizer: Path, labelled_texts: tuple[tuple[str, str], ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A Hugging Face folder: BERT of 2 layers, trained for a second until it tells ``bad`` from ``good``."""
    import torch
    import transformers

    torch.set_num_threads(1)  # for so small a model a second thread only waits, tenfold where others use the machine
    torch.manual_seed(4)
    config = bert_config(tiny_tokenizer, id2label=dict(enumerate(LABELS)), label2id={"bad": 0, "good": 1})
    module = transformers.BertForSequenceClassification(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer)
    inputs = tokenizer([text for text, _ in labelled_texts], padding=True, return_tensors="pt")
    labels = torch.tensor([LABELS.index(label) for _, label in labelled_texts])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(40):
        loss = module(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return save_model(module, tiny_tokenizer, tmp_path_factory.mktemp("models") / "tiny-classifier")


def bert_config(tokenizer: Path, **more: Any) -> Any:
    import transformers

    vocab = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return transformers.BertConfig(
        vocab_size=len(vocab),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=MAX_POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        **more,
    )


def save_model(module: Any, tokenizer: Path, folder: Path) -> Path:
    module.eval().save_pretrained(folder, safe_serialization=True)
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "LICENSE").write_text(LICENCE, encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def make_mlp() -> onnx.ModelProto:
    """``y [N, 16] = relu(x [N, 16] @ first + bias) @ second``: two MatMuls large enough to be quantized."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(5)
    tensors = {
        "first": generator.normal(0, 0.25, (16, 96)),
        "bias": generator.normal(0, 0.1, (96,)),
        "second": generator.normal(0, 0.1, (96, 16)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["product"], name="layer_1"),
            helper.make_node("Add", ["product", "bias"], ["sum"], name="layer_1_bias"),
            helper.make_node("Relu", ["sum"], ["hidden"], name="relu"),
            helper.make_node("MatMul", ["hidden", "second"], ["y"], name="layer_2"),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="session")
def mlp_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perceptron with its weights inside the file."""
    import onnx

    path = tmp_path_factory.mktemp("inline") / "mlp.onnx"
    onnx.save(make_mlp(), path)
    return path


@pytest.fixture(scope="session")
def mlp_external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its weights in ``mlp.data`` beside it."""
    import onnx

    path = tmp_path_factory.mktemp("external") / "mlp-external.onnx"
    onnx.save(make_mlp(), path, save_as_external_data=True, location="mlp.data", size_threshold=0)
    assert (path.parent / "mlp.data").stat().st_size >= 4 * 2 * 16 * 96
    return path


@pytest.fixture(scope="session")
def mlp_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples of the perceptron's input, as an ``.npz``."""
    path = tmp_path_factory.mktemp("arrays") / "samples.npz"
    np.savez(path, x=np.random.default_rng(6).normal(0, 1, (60, 16)).astype(np.float32))
    return path


OWN_MODULE = '''\
"""A model of one's own, and a metric of one's own."""

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(8)
        self.inner = nn.Linear(16, 96)
        self.outer = nn.Linear(96, 16)

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x)))


def make():
    return Net(), torch.ones(1, 16)


def make_dynamic():
    return Net(), {"x": torch.ones(2, 16)}, {"x": {0: torch.export.Dim.DYNAMIC}}


def relative_error(candidate, reference, batches):
    worst = 0.0
    for batch in batches:
        (ours,), (theirs,) = candidate(batch.feed).values(), reference(batch.feed).values()
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    return {"drop": worst, "worst_relative_error": worst}
'''


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``own_net.py``, whose ``make``, ``make_dynamic`` and ``relative_error`` a build may name."""
    import sys

    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "own_net.py").write_text(OWN_MODULE, encoding="utf-8")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    yield folder
    sys.modules.pop("own_net", None)


Refuses = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def refuses() -> Refuses:
    """A ``with`` block that must end in an error of the kind given: whole, and with the words given in each part."""

    @contextmanager
    def block(kind: type[EdgeslimError], *, where: str, got: str, expected: str = "", hint: str = "") -> Iterator[None]:
        with pytest.raises(kind) as caught:
            yield
        error = caught.value
        assert type(error) is kind
        parts = {"where": where, "got": got, "expected": expected, "hint": hint}
        found = {name: getattr(error, name) for name in parts}
        missing = {name: (text, found[name]) for name, text in parts.items() if text not in found[name]}
        assert not missing, f"{missing}\n{error}"
        assert error.where
        assert error.got
        assert error.expected or error.hint, f"it doesn't say how to go on: {error}"
        assert "Traceback" not in str(error)

    return block


@pytest.fixture(scope="session")
def bert_module(tiny_bert: Path) -> torch.nn.Module:
    """``tiny_bert`` loaded with transformers, as the reference that exports are compared with."""
    import torch
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = transformers.AutoModel.from_pretrained(tiny_bert, attn_implementation="eager", dtype=torch.float32)
    return module.eval()
