"""A language model through the whole flow, from a GGUF file and from a Hugging Face folder."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import tiny_llama

import edgeslim
from edgeslim.conversation import open_conversation
from edgeslim.decoders.generation import generate
from edgeslim.errors import BadInputError
from edgeslim.recheck import CheckOptions, check_package


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "project"
    tiny_llama.write_project(folder, "m.gguf")
    tiny_llama.write_gguf(folder / "m.gguf", {"ffn": "Q4_1", "weight": "Q8_0"})
    report = edgeslim.build(target="linux-arm64", folder=folder, use_cache=False)
    assert not report.failed(), report.failed()
    return folder


def test_a_gguf_file_keeps_its_blocks(built: Path) -> None:
    report = json.loads((built / "out" / "linux-arm64" / "report.json").read_text())
    found = {finding["metric"]: finding["value"] for finding in report["findings"]}
    assert found["perplexity_ratio"] == pytest.approx(1, abs=0.02)
    assert found["agreement"] > 0.9
    assert 0 < found["token_p50_ms"] < found["first_token_ms"] * 10
    assert found["tokens_per_second"] == pytest.approx(1000 / found["token_p50_ms"])
    assert found["token_ratio"] > 0
    assert found["peak_memory_bytes"] > 0
    export = report["steps"][0]
    assert export["engine"] == "decoder"
    assert export["metrics"]["export_max_abs_diff"] < 1e-3


def test_its_package_is_checked_again(built: Path) -> None:
    package = next((built / "out" / "linux-arm64").glob("*.tar.gz"))
    report = check_package(
        CheckOptions(package=str(package), data=str(built / "evaluation.txt"), reference=str(built / "m.gguf"))
    )
    assert not report.failed(), report.failed()
    found = {finding.metric for finding in report.findings}
    assert found >= {"perplexity", "perplexity_ratio", "first_token_ms", "tokens_per_second"}


def test_a_huggingface_folder(tmp_path: Path) -> None:
    tiny_llama.write_huggingface(tmp_path / "model")
    tiny_llama.write_project(tmp_path / "project", str(tmp_path / "model"), steps="")
    report = edgeslim.build(target="linux-arm64", folder=tmp_path / "project", use_cache=False)
    assert not report.failed(), report.failed()
    tiny_llama.write_project(tmp_path / "other", str(tmp_path / "model"))
    with pytest.raises(BadInputError, match="without blocks"):
        edgeslim.build(target="linux-arm64", folder=tmp_path / "other", use_cache=False)
    for step in ("finetune", "distill"):
        tiny_llama.write_project(tmp_path / "other", str(tmp_path / "model"), steps=f'[[steps]]\nuse = "{step}"')
        with pytest.raises(BadInputError, match="no training data"):
            edgeslim.build(target="linux-arm64", folder=tmp_path / "other", use_cache=False)


def test_fewer_neurons_by_their_activations(tmp_path: Path) -> None:
    tiny_llama.write_huggingface(tmp_path / "model")
    steps = '[[steps]]\nuse = "prune_structured"\nkeep_neurons = 0.7\n'
    folder = tiny_llama.write_project(
        tmp_path / "project", str(tmp_path / "model"), steps + 'importance = "activation"\n', drop=10
    )
    report = edgeslim.build(target="linux-arm64", folder=folder, use_cache=False)
    assert report.steps[1].metrics["neurons_kept"] == pytest.approx(2 / 3)
    assert report.steps[1].after["bytes"] < report.steps[1].before["bytes"]
    tiny_llama.write_project(folder, str(tmp_path / "model"), steps)
    with pytest.raises(BadInputError, match=r"GroupQueryAttention.*\n.*\n.*activation"):
        edgeslim.build(target="linux-arm64", folder=folder, use_cache=False)


def test_low_rank_pruning_and_codebooks(tmp_path: Path) -> None:
    """What needs no training works on the graph, which is written from the checkpoint."""
    names = ("low_rank", "prune_magnitude", "cluster")
    steps = "".join(f'[[steps]]\nuse = "{name}"\nmin_elements = 100\n' for name in names)
    tiny_llama.write_huggingface(tmp_path / "model")
    steps = steps.replace('"low_rank"', '"low_rank"\nmultiple = 2')
    folder = tiny_llama.write_project(tmp_path / "project", str(tmp_path / "model"), steps, drop=10)
    report = edgeslim.build(target="linux-arm64", folder=folder, use_cache=False)
    assert [step.name for step in report.steps[1:4]] == list(names)
    assert all(step.changed > 1 for step in report.steps[1:4])
    assert not report.failed(), report.failed()


def test_chat_goes_on_from_turn_to_turn(built: Path) -> None:
    package = next((built / "out" / "linux-arm64").glob("*.tar.gz"))
    turns = ["A fox?", "And 12 dogs?"]
    with open_conversation(package) as conversation:
        conversation._end_tokens = ()
        for turn in turns:
            assert "".join(conversation.answer(turn, max_tokens=6))
        tokens = conversation._tokens
    # The same without a cache that is kept: all turns at once.
    with open_conversation(package) as conversation:
        again = generate(conversation._decoder, tokens[:-6], end_tokens=(), max_tokens=6)
        assert list(again) == tokens[-6:]


def test_only_whole_packages_of_language_models_talk(built: Path, tmp_path: Path) -> None:
    package = next((built / "out" / "linux-arm64").glob("*.tar.gz"))
    damaged = tmp_path / package.name
    data = bytearray(package.read_bytes())
    data[len(data) // 2] ^= 255
    damaged.write_bytes(data)
    with pytest.raises(BadInputError), open_conversation(damaged):
        pass


def test_the_command_line_answers(built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from edgeslim.cli import app

    package = next((built / "out" / "linux-arm64").glob("*.tar.gz"))
    result = CliRunner().invoke(app, ["chat", str(package), "--max-tokens", "4"], input="A fox?\nA dog?\n\n")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) >= 2


def test_coarse_grids_meet_their_bits(tmp_path: Path) -> None:
    folder = tiny_llama.write_project(
        tmp_path / "coarse", "m.gguf", '[[steps]]\nuse = "quantize_decoder"\ntarget_bits = 5.0', drop=1.0
    )
    tiny_llama.write_gguf(folder / "m.gguf", {})
    report = edgeslim.build(target="linux-arm64", folder=folder, use_cache=False)
    metrics = report.steps[1].metrics
    assert metrics["predicted_bits"] == pytest.approx(5, abs=0.1)
    assert metrics["bits_per_weight"] == pytest.approx(5, abs=0.5)
    found = {finding.metric: finding.value for finding in report.findings}
    assert found["perplexity_ratio"] == pytest.approx(1, abs=0.1)


RECIPES = {
    "2:4": [{"use": "prune_sensitivity", "method": "obs", "pattern": "2:4"}],
    "low rank, then 4 bits": [
        {"use": "low_rank", "keep": 0.8, "multiple": 4, "min_elements": 1024},
        {"use": "quantize_int4"},
    ],
    "neurons": [{"use": "prune_structured", "keep_neurons": 0.75, "importance": "activation"}],
}


@pytest.mark.parametrize("name", RECIPES)
def test_techniques_for_any_graph_work_on_decoders(name: str, tmp_path: Path) -> None:
    recipe = "".join(
        "\n[[steps]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in step.items())
        for step in RECIPES[name]
    )
    tiny_llama.write_huggingface(tmp_path / "model")
    folder = tiny_llama.write_project(tmp_path / "project", str(tmp_path / "model"), steps=recipe, drop=9)
    report = edgeslim.build(target="linux-arm64", folder=folder, use_cache=False)
    assert not report.failed(), report.failed()
    steps_by_name = {step.name: step for step in report.steps}
    if name == "2:4":
        assert steps_by_name["prune_sensitivity"].metrics["sparsity"] == pytest.approx(0.5, abs=1e-3)
    elif name == "neurons":
        pruned = steps_by_name["prune_structured"]
        lost = 2 * 3 * 32 * 64 * 4  # layers, matrices, neurons (of 96 stay 64, a multiple of 16), channels, bytes
        assert pruned.before["bytes"] - pruned.after["bytes"] == pytest.approx(lost, rel=0.03)
    else:
        assert steps_by_name["low_rank"].metrics["kept"] <= 0.8
        assert steps_by_name["quantize_int4"].metrics["tied_matrices"] == 1


@pytest.mark.parametrize(
    ("keys", "steps", "room", "kind"),
    [
        ("kv_cache_length = 48", '[[steps]]\nuse = "kv_cache"\nbits = 8', 48, "tensor(int8)"),
        ("fixed_shapes = true", "", 32, "tensor(float)"),
    ],
)
def test_a_target_may_fix_the_cache(keys: str, steps: str, room: int, kind: str, tmp_path: Path) -> None:
    tiny_llama.write_project(tmp_path, "m.gguf", steps=tiny_llama.KEEP + steps)
    tiny_llama.write_gguf(tmp_path / "m.gguf", {"ffn": "Q4_1", "weight": "Q8_0"})
    (tmp_path / "board.toml").write_text(f'extends = "linux-arm64"\nname = "board"\n[runtime]\n{keys}\n')
    report = edgeslim.build(target=str(tmp_path / "board.toml"), folder=tmp_path, use_cache=False)
    assert not report.failed(), report.failed()
    with tarfile.open(next((tmp_path / "out" / "board").glob("*.tar.gz"))) as archive:
        member = archive.extractfile(next(name for name in archive.getnames() if name.endswith("manifest.json")))
        assert member is not None
        inputs = {item["name"]: item for item in json.loads(member.read())["signature"]["inputs"]}
    past = inputs["past_key_values.0.key"]
    assert (past["shape"][2], past["type"]) == (room, kind)
