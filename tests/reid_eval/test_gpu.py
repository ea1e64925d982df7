"""On a GPU Inception says of pictures what it says on a CPU."""

import numpy as np
import pytest
import torch

from reid_eval.extractors import InceptionExtractor
from reid_eval.inception import tensor_shapes

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random ones, scaled so that signals neither die nor explode on the way."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in tensor_shapes().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.long)
        elif name.endswith(("conv.weight", "fc.weight")):
            state[name] = torch.randn(shape, generator=generator) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.1
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, file)
    return file


@pytest.mark.parametrize("resize", ["legacy", "clean", "tensorflow"])
def test_inception_gives_the_features_of_the_cpu(weights, gpu, resize):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (48, 24, 3), dtype=np.uint8) for _ in range(3)]
    on_cpu, on_gpu = (
        InceptionExtractor(weights, device=device, resize=resize, any_weights=True)(pictures) for device in ("cpu", gpu)
    )
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-3, atol=1e-4 * np.abs(on_cpu).max())
    half = InceptionExtractor(weights, device=gpu, resize=resize, any_weights=True, half=True)(pictures)
    assert 0 < np.abs(half - on_cpu).max() < 0.03 * np.abs(on_cpu).max()  # 8 bits a number
