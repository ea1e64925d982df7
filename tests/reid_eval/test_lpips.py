from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from reid_eval import lpips as module
from reid_eval.files import file_fingerprint
from reid_eval.lpips import Lpips, LpipsError
from reid_eval.one_pass import MeasureError
from reid_eval.pair_results import lpips_metric, of_pairs
from reid_eval.weights import WeightFileError


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """AlexNet with seeded random weights, and random heads, in the published formats."""
    folder = tmp_path_factory.mktemp("lpips")
    generator = torch.Generator().manual_seed(0)
    layers = models.alexnet(weights=None).features.state_dict()
    state = {f"features.{name}": torch.randn(value.shape, generator=generator) * 0.05 for name, value in layers.items()}
    torch.save(state, folder / "trunk.pth")
    channels = (64, 192, 384, 256, 256)
    heads = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for n, c in enumerate(channels)}
    torch.save(heads, folder / "heads.pth")
    return folder / "trunk.pth", folder / "heads.pth"


def pictures(count: int, height: int = 40, width: int = 36) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def test_the_distance_is_the_papers_sum_layer_by_layer(files):
    first, second = pictures(2)
    lpips = Lpips("alex", weights=files[0], heads=files[1], any_weights=True, device="cpu")
    layers = models.alexnet(weights=None).features
    layers.load_state_dict({name.removeprefix("features."): value for name, value in torch.load(files[0]).items()})
    heads = list(torch.load(files[1]).values())
    shift, scale = (torch.tensor(values)[:, None, None] for values in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    expected, taps = 0.0, {1: 0, 4: 1, 7: 2, 9: 3, 11: 4}
    maps = [(torch.from_numpy(side).permute(2, 0, 1) / 127.5 - 1 - shift) / scale for side in (first, second)]
    for number, layer in enumerate(layers[:12]):
        with torch.no_grad():
            maps = [layer(side[None])[0].clone() for side in maps]
        if number in taps:
            a, b = (side / side.norm(dim=0, keepdim=True) for side in maps)
            expected += ((a - b) ** 2 * heads[taps[number]][0]).sum(dim=0).mean().item()
    assert lpips([first], [second])[0] == pytest.approx(expected, rel=1e-4)
    assert (lpips.name, lpips.quotable) == ("lpips_alex_demo", False)


def test_equal_pictures_are_at_distance_0_and_batches_change_nothing(files):
    lpips = Lpips("alex", weights=files[0], heads=files[1], any_weights=True, device="cpu")
    some = pictures(4)
    together = lpips([some[0], some[1], some[2]], [some[0], some[3], some[3]])
    assert together[0] == 0
    assert together[1] == pytest.approx(lpips([some[3]], [some[1]])[0], rel=1e-5)


def test_other_weights_sizes_and_networks_are_refused(files):
    with pytest.raises(WeightFileError, match=r"SHA-256 .* expected 7be5be79"):
        Lpips("alex", weights=files[0], heads=files[1])
    with pytest.raises(WeightFileError, match="does not fit the network"):
        Lpips("vgg", weights=files[0], heads=files[1], any_weights=True, device="cpu")(pictures(1), pictures(1))
    lpips = Lpips("alex", weights=files[0], heads=files[1], any_weights=True, device="cpu")
    with pytest.raises(LpipsError, match="at least 32x32"):
        lpips(pictures(1, 20, 40), pictures(1, 20, 40))
    with pytest.raises(LpipsError, match="2 different sizes"):
        lpips(pictures(1), pictures(1, 50, 40))


def test_many_pixels_are_measured_in_parts_with_the_same_distances(files, monkeypatch):
    lpips = Lpips("alex", weights=files[0], heads=files[1], any_weights=True, device="cpu")
    some = pictures(5)
    pairs = some[:4], some[1:]
    expected = lpips(*pairs)
    monkeypatch.setitem(module._PIXELS_AT_ONCE, "alex", 2 * 40 * 36 + 1)
    np.testing.assert_allclose(lpips(*pairs), expected, rtol=1e-5)


def test_a_picture_that_would_take_more_than_a_gigabyte_is_refused_unless_it_is_asked_for(files, monkeypatch):
    lpips = Lpips("alex", weights=files[0], heads=files[1], any_weights=True, device="cpu")
    monkeypatch.setitem(module._PIXELS_AT_ONCE, "alex", 40 * 36)
    with pytest.raises(
        LpipsError, match=r"40x36 pixels: LPIPS with AlexNet takes more .* above 720 pixels; .*REID_MAX"
    ):
        lpips(pictures(1), pictures(1))
    monkeypatch.setenv("REID_MAX_PIXELS", "2000")
    assert lpips(pictures(1), pictures(1)) == 0


def test_tensors_of_odd_names_are_said_not_to_fit(files, tmp_path):
    torch.save({"features.x.weight": torch.zeros(2), "features": torch.zeros(1)}, tmp_path / "odd.pth")
    lpips = Lpips("alex", weights=tmp_path / "odd.pth", heads=files[1], any_weights=True, device="cpu")
    with pytest.raises(WeightFileError, match=r"odd\.pth: does not fit the network: 10 tensors missing"):
        lpips(pictures(1), pictures(1))


def test_damaged_heads_give_an_error_and_no_pairs_that_could_not_be_read(files, tmp_path):
    heads = torch.load(files[1])
    torch.save({name: value * torch.nan for name, value in heads.items()}, tmp_path / "heads.pth")
    for number, pixels in enumerate(pictures(2)):
        for side in "ab":
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / side / f"{number}.png")
    lpips = Lpips("alex", weights=files[0], heads=tmp_path / "heads.pth", any_weights=True, device="cpu")
    with pytest.raises(MeasureError, match=r"0\.png: measured as what is no number; are the weights damaged"):
        of_pairs(tmp_path / "a", tmp_path / "b", [lpips_metric(lpips)], strict=False)


def test_the_whole_checksums_stand_in_the_record_of_a_result(files, tmp_path):
    for number, pixels in enumerate(pictures(2)):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{number}.png")
    lpips = Lpips("alex", weights=files[0], heads=files[1], any_weights=True, device="cpu")
    (result,) = of_pairs(tmp_path / "a", tmp_path / "a", [lpips_metric(lpips)])
    assert result.made_by["how"]["weights"] == {
        "alex trunk": file_fingerprint(files[0]),
        "alex heads": file_fingerprint(files[1]),
    }
