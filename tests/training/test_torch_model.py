"""Masks, factors and students: what stages do to a module, and its way to disk and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from edgeslim.errors import BadInputError, CheckError
from edgeslim.training.masks import apply_masks, check_masks, count_masked, join_masks
from edgeslim.training.student import choose_layers, count_layers, shrink
from edgeslim.training.torch_model import TorchModel, factor_linear, load_model, save_model


@pytest.fixture(scope="module")
def bert() -> TorchModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    config._attn_implementation = "eager"
    module = transformers.BertModel(config)
    return TorchModel(module=module, output="last_hidden_state").frozen()


def run(model: TorchModel) -> torch.Tensor:
    with torch.no_grad():
        return model.pick(model.module(input_ids=torch.tensor([[1, 2, 3, 4]])))


def test_masks_zero_what_they_should() -> None:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0], [float("nan"), 4.0]]))
    mask = torch.tensor([[True, False], [False, True]])
    apply_masks(layer, {"weight": mask})
    assert layer.weight.tolist() == [[1.0, 0.0], [0.0, 4.0]]
    assert count_masked({"weight": mask}) == 2
    joined = join_masks({"weight": mask}, {"weight": torch.tensor([[True, True], [True, False]])})
    assert joined["weight"].tolist() == [[True, False], [False, False]]
    with pytest.raises(BadInputError, match="no such parameter"):
        apply_masks(layer, {"bias": torch.ones(2, dtype=torch.bool)})


def test_lost_masks_are_refused() -> None:
    layer = nn.Linear(2, 1, bias=False)
    mask = {"weight": torch.tensor([[True, False]])}
    with pytest.raises(CheckError, match="1 pruned weights aren't zero"):
        check_masks(layer, {}, mask, "finetune")
    apply_masks(layer, mask)
    check_masks(layer, mask, mask, "finetune")
    for after in ({}, {"weight": torch.tensor([[True, True]])}):
        with pytest.raises(BadInputError, match="prune after low_rank"):
            check_masks(layer, mask, after, "low_rank")


def test_a_changed_model_comes_back_from_disk(bert: TorchModel, tmp_path: Path) -> None:
    student = shrink(bert, (1, 3), {"intermediate_size": 24}, seed=0)
    name = "encoder.layer.1.output.dense"
    factor_linear(student.module, name, 4)
    mask = torch.rand(24, 16) > 0.5
    masks = {"encoder.layer.0.intermediate.dense.weight": mask}
    apply_masks(student.module, masks)
    changed = TorchModel(
        module=student.module, output=student.output, masks=masks, factors={name: 4}, config=student.config
    ).frozen()
    save_model(changed, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    back = load_model(bert, tmp_path)
    assert torch.equal(run(back), run(changed))
    assert torch.equal(back.masks["encoder.layer.0.intermediate.dense.weight"], mask)
    assert (back.factors, count_layers(back.module)) == ({name: 4}, 2)
    (tmp_path / "structure.json").write_text(json.dumps({"config": None, "factors": {"pooler": 2}}), encoding="utf-8")
    with pytest.raises(BadInputError, match="linear layer"):
        load_model(bert, tmp_path)
    (tmp_path / "structure.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadInputError, match="the files of a torch model"):
        load_model(bert, tmp_path)


def test_a_student_begins_with_its_teachers_layers(bert: TorchModel) -> None:
    student = shrink(bert, (0, 2), {}, seed=0)
    ours, theirs = student.module.state_dict(), bert.module.state_dict()
    for name, value in ours.items():
        origin = name.replace("layer.1.", "layer.2.")
        assert torch.equal(value, theirs[origin]), name
    narrow = shrink(bert, (0, 1, 2, 3), {"hidden_size": 8, "intermediate_size": 16}, seed=0)
    weight = narrow.module.state_dict()["encoder.layer.3.intermediate.dense.weight"]
    assert torch.equal(weight, theirs["encoder.layer.3.intermediate.dense.weight"][:16, :8])
    assert run(narrow).shape == (1, 4, 8)


def test_all_layers_give_the_teacher_itself(bert: TorchModel) -> None:
    assert torch.equal(run(shrink(bert, (0, 1, 2, 3), {}, seed=0)), run(bert))


def test_which_layers() -> None:
    assert choose_layers(3, 6) == (1, 3, 5)
    assert choose_layers(None, 2) == (0, 1)
    assert choose_layers((0, 5), 6) == (0, 5)
    for wrong in (0, 7, (3, 1), (6,), ()):
        with pytest.raises(BadInputError, match="student_layers"):
            choose_layers(wrong, 6)


def test_students_that_cannot_be(bert: TorchModel) -> None:
    with pytest.raises(BadInputError, match='no "hiden_size"'):
        shrink(bert, (0,), {"hiden_size": 8}, seed=0)
    with pytest.raises(BadInputError, match="sizes that fit"):
        shrink(bert, (0,), {"hidden_size": 15}, seed=0)
    with pytest.raises(BadInputError, match="pruned"):
        shrink(TorchModel(module=bert.module, masks={"a": torch.ones(1) > 0}), (0,), {}, seed=0)
    with pytest.raises(BadInputError, match="a smaller student of a Linear"):
        shrink(TorchModel(module=nn.Linear(2, 2)), (0,), {}, seed=0)
