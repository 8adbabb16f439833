"""Pretraining: the loss, its negatives, gradients in chunks, and how encoders are judged."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from builders.pairs import ALONE, blobs, config, write_pairs

from wsi_stain.errors import ConfigError, TrainingError
from wsi_stain.nn.pixels import to_tensor
from wsi_stain.pairs.neighbours import Neighbours
from wsi_stain.pairs.pair import Pair, find_pairs, load_pair
from wsi_stain.train.contrast import ContrastiveRecipe
from wsi_stain.train.crops import Crops
from wsi_stain.train.discrimination import auc, best_threshold
from wsi_stain.train.encoders import Encoders, load_encoders
from wsi_stain.train.losses import adaptive_weights, info_nce
from wsi_stain.train.stages import pretrain, train


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six tiles, each with a pattern of its own that both stains show."""
    return write_pairs(tmp_path / "pairs", [(he, he[..., ::-1].copy()) for he in blobs(8, 128)], held_out=2)


def embeddings(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 5, generator=generator), torch.randn(n, 5, generator=generator)


def naive_info_nce(he: torch.Tensor, ihc: torch.Tensor, excluded: torch.Tensor) -> float:
    losses = []
    for i in range(len(he)):
        scores = [F.cosine_similarity(he[i], ihc[j], dim=0) / 0.07 for j in range(len(he))]
        kept = [score for j, score in enumerate(scores) if not excluded[i, j]]
        losses.append(-(scores[i] - torch.logsumexp(torch.stack(kept), 0)))
    return torch.stack(losses).mean().item()


def test_info_nce_is_its_formula_with_and_without_exclusions() -> None:
    he, ihc = embeddings()
    excluded = torch.zeros(6, 6, dtype=torch.bool)
    for mask in (
        excluded,
        excluded.clone().index_put((torch.tensor([0, 3]), torch.tensor([1, 5])), torch.tensor(True)),
    ):
        actual = info_nce(he, ihc, 0.07, symmetric=False, excluded=mask)
        assert actual.item() == pytest.approx(naive_info_nce(he, ihc, mask), rel=1e-5)
        both = info_nce(he, ihc, 0.07, symmetric=True, excluded=mask).item()
        assert both == pytest.approx((naive_info_nce(he, ihc, mask) + naive_info_nce(ihc, he, mask.T)) / 2, rel=1e-5)


def test_info_nce_ignores_the_length_of_embeddings_and_ends_at_zero() -> None:
    he, ihc = embeddings()
    assert info_nce(3 * he, ihc, 0.07, symmetric=False).item() == pytest.approx(
        info_nce(he, ihc, 0.07, symmetric=False).item(), rel=1e-5
    )
    assert info_nce(torch.eye(5), torch.eye(5), 0.07, symmetric=True).item() < 1e-4


def tile(name: str, slide: str, x: int | None = None, y: int | None = None) -> Pair:
    return Pair(Path(f"{name}.png"), Path(f"{name}_ihc.png"), slide, "train", x, y)


def test_neighbours_of_one_slide_are_not_negatives() -> None:
    tiles = [
        tile("corner", "s", 0, 0),
        tile("beside", "s", 512, 0),
        tile("diagonal", "s", 512, 512),
        tile("far", "s", 1536, 0),
        tile("other slide", "t", 512, 0),
        tile("corner", "s", 0, 0),
    ]
    masks = {name: Neighbours(tiles, name).mask(tiles) for name in ("none", "neighbours", "slide")}  # type: ignore[arg-type]
    assert not masks["none"].any()
    assert masks["neighbours"][0].tolist() == [False, True, True, False, False, True]
    assert masks["slide"][0].tolist() == [False, True, True, True, False, True]
    for mask in masks.values():
        assert not mask.diagonal().any()
        np.testing.assert_array_equal(mask, mask.T)


def test_tiles_without_coordinates_or_slide_are_neighbours_only_of_themselves() -> None:
    tiles = [tile("a", ""), tile("b", ""), tile("a", "")]
    for exclude in ("neighbours", "slide"):
        assert Neighbours(tiles, exclude).mask(tiles)[0].tolist() == [False, False, True]  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [2, 3])
def test_gradients_in_chunks_are_those_of_the_whole_batch(
    tmp_path: Path, pairs: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch statistics would differ between chunks, so norms are held; what is left must be equal."""
    he, ihc = torch.rand(2, 6, 3, 64, 64).unbind(0)
    gradients = []
    for size in (chunk, 6):
        settings = config(
            pairs, tmp_path / "run", f"pretrain.chunk={size}", "pretrain.schedule.batch=6", "pretrain.schedule.lr=0"
        )
        recipe = ContrastiveRecipe(settings, 100, Crops(tuple(find_pairs(pairs, "train")), 64, 0), ALONE)
        encoders = recipe.encoders.eval()
        monkeypatch.setattr(encoders, "train", lambda mode=True, encoders=encoders: encoders)
        recipe.step(he, ihc, 0)
        gradients.append(torch.cat([p.grad.flatten() for p in recipe.encoders.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def naive_auc(pairs: np.ndarray, negatives: np.ndarray) -> float:
    wins = [(a > b) + 0.5 * (a == b) for a in pairs for b in negatives]
    return float(np.mean(wins))


def test_auc_and_threshold_agree_with_counting() -> None:
    rng = np.random.default_rng(0)
    pairs, negatives = np.round(rng.normal(0.5, 0.3, 40), 1), np.round(rng.normal(0.1, 0.3, 70), 1)
    assert auc(pairs, negatives) == pytest.approx(naive_auc(pairs, negatives))
    accuracies = {t: ((pairs >= t).mean() + (negatives < t).mean()) / 2 for t in np.r_[pairs, negatives]}
    threshold, accuracy = best_threshold(pairs, negatives)
    assert accuracy == pytest.approx(max(accuracies.values()))
    assert accuracies[threshold] == pytest.approx(accuracy)
    assert auc(pairs, pairs) == pytest.approx(0.5)


def graded(folder: Path) -> Path:
    """Tiles that differ in how much is stained, which each stain shows in its own colours; four are held out."""
    noise = np.random.default_rng(0).normal(0, 10, (16, 96, 96, 1))
    amounts = np.random.default_rng(1).permutation(np.linspace(20, 220, 16))
    grey = np.clip(amounts[:, None, None, None] + noise, 0, 255)
    he, ihc = grey * [1.0, 0.6, 0.8], 255 - grey * [0.4, 0.7, 1.0]
    return write_pairs(folder, list(zip(he.astype(np.uint8), ihc.astype(np.uint8), strict=True)), held_out=4)


@pytest.mark.slow
def test_pretrained_encoders_tell_held_out_pairs_from_negatives(tmp_path: Path) -> None:
    """And so true pairs weigh more than unrelated ones, which random encoders take for the same."""
    changes = ("pretrain.schedule.images=640", "pretrain.schedule.batch=8", "pretrain.schedule.save_images=640")
    settings = config(graded(tmp_path / "pairs"), tmp_path / "run", *changes, "pretrain.schedule.lr=0.002")
    file = pretrain(settings)
    assert file is not None
    actual = json.loads((file.parent / "discrimination.json").read_text())
    assert actual["split"] == "val"
    assert actual["pairs"] == 4
    assert actual["auc"]["value"] > 0.9
    assert actual["accuracy"]["value"] > 0.8
    assert (file.parent / "similarity.png").read_bytes().startswith(b"\x89PNG")
    real = to_tensor(np.stack([load_pair(p)[1][:64, :64] for p in find_pairs(settings.pairs, "val")]))
    torch.manual_seed(0)
    for encoders, is_trained in ((load_encoders(file, 4).eval(), True), (Encoders(4).eval(), False)):
        true = adaptive_weights(encoders.similarity(real, real.flip(3), 1), 50, 50).mean()
        unrelated = adaptive_weights(encoders.similarity(real, real.roll(1, dims=0), 1), 50, 50).mean()
        assert (true - unrelated > 10) == is_trained
    before = file.read_bytes()
    pretrain(settings)  # the same command again: nothing is left to do
    assert file.read_bytes() == before


@pytest.mark.slow
def test_resumed_pretraining_takes_the_same_steps(tmp_path: Path, pairs: Path) -> None:
    whole, broken = (config(pairs, tmp_path / name) for name in ("whole", "broken"))
    pretrain(whole)

    class KilledError(Exception):
        pass

    def kill(step: object) -> None:
        if step.images == 12:  # type: ignore[attr-defined] - beyond the checkpoint at 8
            raise KilledError

    with pytest.raises(KilledError):
        pretrain(broken, kill)
    pretrain(broken)
    logs = [
        [json.loads(x)["loss"] for x in (c.run / "encoders/log.jsonl").read_text().splitlines()]
        for c in (whole, broken)
    ]
    assert logs[0] == logs[1]
    files = [load_encoders(c.run / "encoders/encoders.safetensors", 4).state_dict() for c in (whole, broken)]
    for key, tensor in files[0].items():
        assert torch.equal(tensor, files[1][key]), key


def test_unfit_encoders_are_refused_before_training(tmp_path: Path, pairs: Path) -> None:
    pretrain(config(pairs, tmp_path / "narrow", "pretrain.schedule.images=4"))
    wide = config(pairs, tmp_path / "wide", "encoders.source=pretrained", "generator.channels=8")
    with pytest.raises(TrainingError, match=r"no pretrained encoders at .*: run wsi-stain pretrain"):
        train(wide)
    file = tmp_path / "narrow/encoders/encoders.safetensors"
    wide = dataclasses.replace(wide, encoders=dataclasses.replace(wide.encoders, file=file))
    with pytest.raises(TrainingError, match="have width 4, the generator has 8"):
        train(wide)
    file.write_bytes(b"not tensors")
    with pytest.raises(TrainingError, match="is not an encoders file"):
        train(wide)


@pytest.mark.parametrize(("chunk", "rule"), [(1, "be at least 2"), (3, "divide the batch of 4")])
def test_chunks_that_leave_one_crop_alone_are_refused(tmp_path: Path, chunk: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"chunk is {chunk}: it must {rule}"):
        config(tmp_path, tmp_path, f"pretrain.chunk={chunk}")


def test_adaptive_weights_need_frozen_encoders(tmp_path: Path, pairs: Path) -> None:
    with pytest.raises(ConfigError, match=r"loss\.adaptive needs frozen encoders"):
        config(pairs, tmp_path, "encoders.source=joint")
